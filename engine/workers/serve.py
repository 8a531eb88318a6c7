"""The worker's side: read tasks from standard input, append the rows of each to a file, and report when they are there.

Messages go to the original standard output, one line of JSON each. Whatever a library prints goes to standard error, which the
parent keeps in a log. The worker exits when its standard input ends, because then no parent is waiting for it.
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
from engine.workers.tasks import Task, TaskResult

LONGEST_REASON = 1000
"""Characters of each part of a reported error."""

log = logging.getLogger(__name__)

Work = Callable[[Task], Generator[str, None, TaskResult]]
"""Does one task; yields the name of each step as it begins."""


@dataclass(frozen=True)
class Loaded:
    """A worker that is ready: what it does with a task, and what it reports about its model."""

    work: Work
    facts: Mapping[str, Any] = field(default_factory=dict)


def serve(load: Callable[[Task], Loaded]) -> NoReturn:
    """Load what the first line of standard input requests, then do the task on each further line until the input ends."""
    quiet_libraries()
    disable_core_dumps()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parent = _Parent(os.dup(1))
    os.dup2(2, 1)
    tasks: SimpleQueue[Task] = SimpleQueue()
    Thread(target=_read_tasks, args=(tasks,), name="read tasks", daemon=True).start()
    try:
        request = tasks.get()
        loaded = load(request)
        with JsonlAppender(Path(request["rows"])) as rows:
            parent.send({"ready": dict(loaded.facts), "end": rows.size})
            while True:
                result = _run(loaded.work(tasks.get()), parent)
                for number, row in enumerate(result.rows, start=1):
                    rows.append(row, sync=number == len(result.rows))
                parent.send({"done": dict(result.facts), "end": rows.size})
    except BaseException as error:  # reported to the parent; the traceback stays in this process's log
        log.error("the worker failed", exc_info=error)
        parent.send({"failed": failure_of(error)})
        os._exit(1)


def failure_of(error: BaseException) -> dict[str, Any]:
    """The parts of an error that a person can fix, and its exit code; for a bug, the exception in one line."""
    known = as_stage3_error(error)
    if known is None:
        text = visible_line(f"{type(error).__name__}: {error}", LONGEST_REASON)
        return {"what": text, "why": "", "what_to_do": "", "exit_code": int(ExitCode.BUG)}
    parts = {"what": known.what, "why": known.why, "what_to_do": known.what_to_do}
    return {**{name: text[:LONGEST_REASON] for name, text in parts.items()}, "exit_code": int(known.exit_code)}


def _run(work: Generator[str, None, TaskResult], parent: _Parent) -> TaskResult:
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return cast(TaskResult, end.value)
        parent.send({"step": step})


def _read_tasks(tasks: SimpleQueue[Task]) -> None:
    with os.fdopen(0, "rb", closefd=False) as lines:
        for line in lines:
            tasks.put(loads(line))
    os._exit(1)


@dataclass(frozen=True)
class _Parent:
    """The pipe to the process that started this one."""

    descriptor: int

    def send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.descriptor, data) :]
