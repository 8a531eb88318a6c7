"""What the processes that train tell the one that started them: JSON, one object a line, on their common standard output.

The first process tells events and how the training ended; every process tells that it is there, and why it failed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.core import layout
from engine.core.events import Event
from engine.run.folder import Run
from engine.storage.documents import read_json
from engine.storage.files import write_json

STOP = "stop"
"""The word that asks the processes to save and end."""
LONGEST_REASON = 1000
"""Characters: up to 4,096 bytes of a pipe arrive in one piece, beside those of other processes (pipe(7))."""

Reason = Literal["error", "memory", "lost", "bug"]


def rank_log(run: Run, rank: int) -> Path:
    """The log of one process."""
    return run / layout.PROCESSES_DIR / f"rank-{rank}.log"


@dataclass(frozen=True)
class Request:
    """What each process is asked to do, in a file."""

    config: Mapping[str, Any]
    """The configuration; what --device names is for each process to find."""
    run: str
    """The run folder. The process that asks holds it; those that are asked lock nothing."""
    cache: str
    reference_sha256: str
    plan: Mapping[str, Any]
    max_steps: int = -1
    """Optimizer steps; -1 follows --num-train-epochs."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this request and no other one."""

    def write(self, path: Path) -> None:
        write_json(path, dict(vars(self)))

    @classmethod
    def read(cls, path: Path) -> Request:
        """Raises DamagedState, OSError."""
        return read_json(path, cls)


@dataclass(frozen=True)
class Failure:
    """Why a process ended."""

    rank: int
    reason: Reason
    """An error that a person can fix; memory ran out; the others did not answer; anything else."""
    what: str
    why: str = ""
    what_to_do: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Result:
    """What the first process knows and no checkpoint keeps."""

    first_loss: float | None
    resumed_from: int | None
    seconds: float
    peak_bytes: int
    """The largest of all processes."""


@dataclass
class WorkerReporter:
    """The standard output of a process, before anything else is written there."""

    descriptor: int
    rank: int

    def started(self) -> None:
        self._send({"here": {"rank": self.rank, "pid": os.getpid()}})

    def event(self, event: Event) -> None:
        self._send({"event": event.as_dict()})

    def result(self, result: Result) -> None:
        self._send({"result": vars(result)})

    def stopped(self) -> None:
        self._send({"stopped": True})

    def failed(self, reason: Reason, what: str, why: str = "", what_to_do: str = "", exit_code: int = 0) -> None:
        what, why, what_to_do = (text[:LONGEST_REASON] for text in (what, why, what_to_do))
        self._send({"failed": vars(Failure(self.rank, reason, what, why, what_to_do, exit_code))})

    def _send(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self.descriptor, data) :]


@dataclass
class WorkerReports:
    """What was reports so far, apart from events."""

    pids: dict[int, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    result: Result | None = None
    stopped: bool = False
    """One of them was asked to stop, and all have saved."""

    def add(self, line: Mapping[str, Any]) -> None:
        match line:
            case {"here": {"rank": int(rank), "pid": int(pid)}}:
                self.pids[rank] = pid
            case {"failed": dict(found)}:
                self.failures.append(Failure(**found))
            case {"result": dict(found)}:
                self.result = Result(**found)
            case {"stopped": True}:
                self.stopped = True
