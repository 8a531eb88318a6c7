"""A machine that trains with another one: it waits for the training of a run folder that both see, and takes part with its GPUs.

The first machine has the run: its lock, its journal, its checkpoints. This one writes the logs of its processes.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import ExitCode
from engine.core.events import Message, RunFinished
from engine.core.reading import open_file
from engine.dpo.training.launcher import REQUEST_JSON, launched, launcher_log
from engine.dpo.training.voice import STOP, Request
from engine.process.interactive_child import InteractiveChild
from engine.run.folder import Run
from engine.run.journal import entry_from_dict
from engine.run.stop import StopToken
from engine.storage.jsonl import parsed_line

LOOK_SECONDS = 0.5
ALIVE_SECONDS = 20.0
"""The first machine touches its request every second; one that was not touched for so long is a leftover."""


def join_training(config: Stage3Config, run: Run, stop: StopToken) -> Generator[Message, None, ExitCode]:
    """Until the training has ended, or the run without one. Returns the exit code; raises Stopped if asked to stop."""
    rank = config.machine_rank
    request, end, taken = _Request(run / REQUEST_JSON), _End(run / layout.EVENTS_JSONL), ""
    yield Message("info", f"Machine {rank} waits for the training in {run.folder}.")
    while True:
        stop.raise_if_requested()
        if (name := request.alive()) and name != taken:
            taken = name
            yield Message("info", f"Machine {rank} takes part in the training.")
            if _take_part(launched(config, run, request.processes), stop) == 0:
                stop.raise_if_requested()
                yield Message("info", "The processes of this machine have ended.")
                return ExitCode.DONE
            yield Message("warning", f"They broke off: see {launcher_log(rank)}. Waiting for the training to go on.")
        if (code := end.code()) is not None:
            yield Message("info", "The run has ended.")
            return code
        stop.wait(LOOK_SECONDS)


def _take_part(processes: AbstractContextManager[InteractiveChild], stop: StopToken) -> int:
    """The exit status of this machine's processes."""
    told = False
    with processes as talk:
        for _ in talk.lines():
            if stop.requested and not told:
                told = True
                talk.send(STOP)
    return talk.code or 0


class _Request:
    """Whether somebody behind it is alive shows in its time, which changes; clocks of two machines cannot be compared."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen, self._changed = path, 0, 0.0
        self.processes = 0
        """On all machines; known once it is alive."""

    def alive(self) -> str:
        """The name of the request; empty if there is none, or a leftover."""
        try:
            touched = self._path.stat().st_mtime_ns
            if self._seen and touched != self._seen:
                self._changed = time.monotonic()
            self._seen = touched
            if not self._changed or time.monotonic() - self._changed > ALIVE_SECONDS:
                return ""
            found = Request.read(self._path)
        except OSError:
            return ""
        self.processes = int(found.plan["processes"])
        return found.name


class _End:
    """Looks for the end of the run among the events that were added since this was made."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._read = journal.stat().st_size if journal.is_file() else 0

    def code(self) -> ExitCode | None:
        try:
            with open_file(self._journal) as file:
                file.seek(self._read)
                lines = file.read().split(b"\n")[:-1]
        except OSError:
            return None
        self._read += sum(len(line) + 1 for line in lines)
        for number, line in enumerate(lines):
            entry = entry_from_dict(parsed_line(number, line)) if b'"run_finished"' in line else None
            if entry is not None and isinstance(entry.event, RunFinished):
                return ExitCode(entry.event.exit_code)
        return None
