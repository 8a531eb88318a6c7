"""Join the training of a run on another machine: wait for it in the shared run folder, then contribute this machine's GPUs.

Machine 0 owns the run: its lock, journal and checkpoints. This machine writes only the logs of its own workers.
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
from engine.dpo.training.launcher import REQUEST_JSON, launch_workers, launcher_log
from engine.dpo.training.worker_messages import STOP, Request
from engine.process.interactive_child import InteractiveChild
from engine.run.folder import Run
from engine.run.journal import entry_from_dict
from engine.run.stop import StopToken
from engine.storage.jsonl import parse_line

POLL_SECONDS = 0.5
ALIVE_SECONDS = 20.0
"""Machine 0 touches its request every second; a request that was not touched for this long is stale."""


def join_training(config: Stage3Config, run: Run, stop: StopToken) -> Generator[Message, None, ExitCode]:
    """Take part until training finishes, or until the run ends without training. Returns the exit code; raises Stopped."""
    rank = config.machine_rank
    request, run_end, joined = _RequestFile(run / REQUEST_JSON), _RunEnd(run / layout.EVENTS_JSONL), ""
    yield Message("info", f"Machine {rank} is waiting for training to start in {run.folder}.")
    while True:
        stop.raise_if_requested()
        if (name := request.live_name()) and name != joined:
            joined = name
            yield Message("info", f"Machine {rank} has joined the training.")
            if _run_workers(launch_workers(config, run, request.processes), stop) == 0:
                stop.raise_if_requested()
                yield Message("info", "The processes on this machine have finished.")
                return ExitCode.DONE
            text = f"The processes on this machine failed; see {launcher_log(rank)}."
            yield Message("warning", f"{text} Waiting for training to resume.")
        if (code := run_end.exit_code()) is not None:
            yield Message("info", "The run has ended.")
            return code
        stop.wait(POLL_SECONDS)


def _run_workers(workers: AbstractContextManager[InteractiveChild], stop: StopToken) -> int:
    """Returns the exit status of this machine's launcher."""
    stop_sent = False
    with workers as launcher:
        for _ in launcher.lines():
            if stop.requested and not stop_sent:
                stop_sent = True
                launcher.send(STOP)
    return launcher.code or 0


class _RequestFile:
    """Machine 0's request. It is live if its modification time changes: the clocks of two machines cannot be compared."""

    def __init__(self, path: Path) -> None:
        self._path, self._last_mtime, self._changed_at = path, 0, 0.0
        self.processes = 0
        """Processes on all machines; known once the request is live."""

    def live_name(self) -> str:
        """The name of the request; empty if there is none, or a stale one."""
        try:
            mtime = self._path.stat().st_mtime_ns
            if self._last_mtime and mtime != self._last_mtime:
                self._changed_at = time.monotonic()
            self._last_mtime = mtime
            if not self._changed_at or time.monotonic() - self._changed_at > ALIVE_SECONDS:
                return ""
            request = Request.read(self._path)
        except OSError:
            return ""
        self.processes = int(request.plan["processes"])
        return request.name


class _RunEnd:
    """Finds the end of the run among events that are appended after this object was created."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._offset = journal.stat().st_size if journal.is_file() else 0

    def exit_code(self) -> ExitCode | None:
        try:
            with open_file(self._journal) as file:
                file.seek(self._offset)
                lines = file.read().split(b"\n")[:-1]
        except OSError:
            return None
        self._offset += sum(len(line) + 1 for line in lines)
        for number, line in enumerate(lines):
            entry = entry_from_dict(parse_line(number, line)) if b'"run_finished"' in line else None
            if entry is not None and isinstance(entry.event, RunFinished):
                return ExitCode(entry.event.exit_code)
        return None
