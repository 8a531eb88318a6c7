"""A worker's side: read tasks from standard input, append the rows of each to a file, and tell when they are there.

What is told goes to the standard output that the process began with; all that a library writes goes to standard error, which
the process that started it keeps in a log. It ends when its standard input does: nobody waits for it any more.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NoReturn, cast

from engine.core.errors import ExitCode
from engine.machine.error_mapping import as_stage3_error
from engine.process.environment import disable_core_dumps, quiet_libraries
from engine.security.sanitize import visible_line
from engine.storage.jsonl import JsonlAppender, loads

LONGEST_REASON = 1000
"""Characters of each part of an error that is told."""

log = logging.getLogger(__name__)

Task = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What one task came to."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """A few numbers beside the rows."""


Work = Callable[[Task], Generator[str, None, Made]]
"""Yields each step as it begins."""


@dataclass(frozen=True)
class Loaded:
    """What a worker is ready to do, and what it knows of its model."""

    work: Work
    facts: Mapping[str, Any] = field(default_factory=dict)


def serve(load: Callable[[Task], Loaded]) -> NoReturn:
    """Load what the first line of the input asks for, then work on the tasks of the others until the input ends."""
    quiet_libraries()
    disable_core_dumps()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    voice = _Voice(os.dup(1))
    os.dup2(2, 1)
    tasks: SimpleQueue[Task] = SimpleQueue()
    Thread(target=_read_tasks, args=(tasks,), name="read tasks", daemon=True).start()
    try:
        request = tasks.get()
        loaded = load(request)
        with JsonlAppender(Path(request["rows"])) as rows:
            voice.tell({"ready": dict(loaded.facts), "end": rows.size})
            while True:
                made = _worked(loaded.work(tasks.get()), voice)
                for number, row in enumerate(made.rows, start=1):
                    rows.append(row, sync=number == len(made.rows))
                voice.tell({"done": dict(made.facts), "end": rows.size})
    except BaseException as error:  # told to the process that waits, with the traceback in this one's log
        log.error("the work ended", exc_info=error)
        voice.tell({"failed": failure_of(error)})
        os._exit(1)


def failure_of(error: BaseException) -> dict[str, Any]:
    """What, why and what to do of an error that a person can fix, with its exit code; of a bug, what it is."""
    known = as_stage3_error(error)
    if known is None:
        text = visible_line(f"{type(error).__name__}: {error}", LONGEST_REASON)
        return {"what": text, "why": "", "what_to_do": "", "exit_code": int(ExitCode.BUG)}
    told = {"what": known.what, "why": known.why, "what_to_do": known.what_to_do}
    return {**{name: text[:LONGEST_REASON] for name, text in told.items()}, "exit_code": int(known.exit_code)}


def _worked(work: Generator[str, None, Made], voice: _Voice) -> Made:
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return cast(Made, end.value)
        voice.tell({"step": step})


def _read_tasks(tasks: SimpleQueue[Task]) -> None:
    with os.fdopen(0, "rb", closefd=False) as lines:
        for line in lines:
            tasks.put(loads(line))
    os._exit(1)


@dataclass(frozen=True)
class _Voice:
    descriptor: int

    def tell(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self.descriptor, data) :]
