"""The log as rows: messages of the run, and the lines of run.log. Pure functions from a state and a text."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import UnsafeError
from engine.core.reading import open_file
from engine.run.state import RunState

TAIL_BYTES = 256 << 10
LEVELS = ("all", "warning", "error")
"""Levels of the filter: everything, warnings and errors, errors only."""
LEVEL_WORDS = {"all": "unfiltered", "warning": "warnings or errors", "error": "errors"}
_RANK = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 3}
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d),\d+ ([A-Z]+) (.*)", re.DOTALL)
"""A line of `engine.process.environment.log_to_file`."""


@dataclass(frozen=True)
class LogLine:
    clock: str
    level: str
    stage: str
    """The stage that the line is about, or that was running at the time; empty if none was."""
    text: str

    def passes(self, level: str) -> bool:
        return level == "all" or _RANK.get(self.level, 1) >= _RANK[level]

    @property
    def full_text(self) -> str:
        """The line as text: what is searched and copied."""
        return " ".join(part for part in (self.clock, self.level, self.stage, self.text) if part)


def message_rows(state: RunState) -> list[LogLine]:
    """The messages and failures of the run, in order of time."""
    timed = [(when, message.level, message.stage, message.text) for when, message in state.messages]
    for stage in state.stages.values():
        failure = stage.failure
        if failure is not None and failure.outcome != "stopped":
            text = " ".join(part for part in (failure.what, failure.why, failure.what_to_do) if part)
            timed.append((stage.finished or state.last_time, "error", stage.name, text))
    return [
        LogLine(_clock(when), level, stage, text) for when, level, stage, text in sorted(timed, key=lambda row: row[0])
    ]


def file_rows(text: str, state: RunState) -> list[LogLine]:
    """The lines of run.log; the lines of a traceback have the level of the line that they follow."""
    rows: list[LogLine] = []
    level, clock, stage = "info", "", ""
    for line in text.splitlines():
        found = _LOG_LINE.fullmatch(line)
        if found is None:
            level = "error" if line.startswith("Traceback ") else level
            rows.append(LogLine("", level, stage, line))
            continue
        day, clock, level = found[1], found[2], found[3].lower()
        stage = stage_at(state, time.mktime(time.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S")))
        rows.append(LogLine(clock, level, stage, found[4]))
    return rows


def stage_at(state: RunState, when: float) -> str:
    """The stage that was running at a time, to the second; empty if none was."""
    for stage in state.stages.values():
        if stage.started is not None and int(stage.started) <= when <= (stage.finished or when):
            return stage.name
    return ""


def tail_of(path: Path) -> str:
    """The end of a file, starting at a whole line; empty if it does not exist."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL_BYTES, 0))
            raw = file.read(TAIL_BYTES)
    except (OSError, UnsafeError):  # no log yet
        return ""
    text = raw.decode("utf-8", errors="backslashreplace")
    return text if size <= TAIL_BYTES else text.partition("\n")[2]


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
