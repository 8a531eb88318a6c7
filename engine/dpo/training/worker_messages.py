"""Messages from training workers to the process that started them: one JSON object per line on their shared standard output.

Rank 0 reports events and the result of training; every worker reports that it has started, and why it failed.
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
"""The command that asks the workers to save and exit."""
MAX_TEXT = 1000
"""Characters: writes of up to 4,096 bytes to a shared pipe arrive in one piece (pipe(7))."""

Reason = Literal["error", "memory", "lost", "bug"]


def rank_log(run: Run, rank: int) -> Path:
    """The log of one worker."""
    return run / layout.PROCESSES_DIR / f"rank-{rank}.log"


@dataclass(frozen=True)
class Request:
    """What the workers are to do, in a file."""

    config: Mapping[str, Any]
    """The configuration; each worker resolves --device for itself."""
    run: str
    """The run folder. The process that writes the request holds its lock; the workers lock nothing."""
    cache: str
    reference_sha256: str
    plan: Mapping[str, Any]
    max_steps: int = -1
    """Optimizer steps; -1 follows --num-train-epochs."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique to this request."""

    def write(self, path: Path) -> None:
        write_json(path, dict(vars(self)))

    @classmethod
    def read(cls, path: Path) -> Request:
        """Raises DamagedState, OSError."""
        return read_json(path, cls)


@dataclass(frozen=True)
class Failure:
    """Why a worker failed."""

    rank: int
    reason: Reason
    """An error that the user can fix; memory ran out; the connection to other workers was lost; anything else."""
    what: str
    why: str = ""
    what_to_do: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Result:
    """What rank 0 knows about the training that no checkpoint contains."""

    first_loss: float | None
    resumed_from: int | None
    seconds: float
    peak_bytes: int
    """The largest peak of all workers."""


@dataclass
class WorkerReporter:
    """Writes messages to a worker's original standard output."""

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
        what, why, what_to_do = (text[:MAX_TEXT] for text in (what, why, what_to_do))
        self._send({"failed": vars(Failure(self.rank, reason, what, why, what_to_do, exit_code))})

    def _send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.descriptor, data) :]


@dataclass
class WorkerReports:
    """All messages so far, except events."""

    pids: dict[int, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    result: Result | None = None
    stopped: bool = False
    """Whether a worker was asked to stop, and all have saved."""

    def add(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"here": {"rank": int(rank), "pid": int(pid)}}:
                self.pids[rank] = pid
            case {"failed": dict(fields)}:
                self.failures.append(Failure(**fields))
            case {"result": dict(fields)}:
                self.result = Result(**fields)
            case {"stopped": True}:
                self.stopped = True
