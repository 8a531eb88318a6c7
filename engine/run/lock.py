"""The lock on a run folder: flock, plus a record of the owner, for users and for file systems where flock has no effect."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

from engine.core import layout
from engine.core.errors import RunLocked
from engine.run import stop_request
from engine.run.owner import Owner, read_owner, this_process
from engine.security.sanitize import visible_line


class RunLock:
    """The lock on one run folder: take it, release it, and find its owner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / layout.LOCK_FILE
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def owner(self) -> Owner | None:
        """The live process that holds the run; None if no process does."""
        owner = read_owner(self._path)
        return owner if owner is not None and owner.is_alive(self._folder) else None

    def take(self) -> None:
        """Lock until `release` or the end of the process. Raises RunLocked with the owner, and OSError.

        A stop request for an earlier owner is removed before this process is recorded: later requests are for this process.
        """
        self._path.parent.mkdir(exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock(file)
            self._record_owner(file)
        except BaseException:
            os.close(file)
            raise
        # A forked child (a data loader's worker) must not hold the lock after this process has exited.
        os.register_at_fork(after_in_child=lambda: _close_quietly(file))
        self._file = file

    def release(self, *, for_restart: bool = False) -> None:
        """Release the lock. With `for_restart` the record stays, because this process is about to replace itself (exec) and lock
        the run again: a stop request that arrives in between is meant for it.
        """
        if self._file is None:
            return
        os.ftruncate(self._file, 0)
        if for_restart:
            self._write(self._file, replace(this_process(self._folder), goes_on=True))
        os.close(self._file)
        self._file = None

    def is_in_place(self) -> bool:
        """Whether the locked file is still the one at its path."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._locked_error() from None
        owner = self.owner()
        if owner is not None and not owner.hands_over_to_this_process:
            # flock succeeded although the owner is alive: it has no effect on this file system.
            raise self._locked_error()

    def _record_owner(self, file: int) -> None:
        before = read_owner(self._path)
        if before is None or not before.hands_over_to_this_process:
            stop_request.remove(self._folder)
        os.ftruncate(file, 0)
        self._write(file, this_process(self._folder))

    @staticmethod
    def _write(file: int, owner: Owner) -> None:
        os.pwrite(file, json.dumps(owner.as_dict()).encode(), 0)

    def _locked_error(self) -> RunLocked:
        folder = visible_line(str(self._folder))
        owner = self.owner()
        if owner is None and (children := processes_holding(self._path)):
            pids = " ".join(map(str, children))
            return RunLocked(
                f"The run {folder} is locked by the children of an ended process: {pids}.",
                "They still have its lock file open.",
                f"Wait until they end, or end them: `kill {pids}`.",
            )
        who = str(owner) if owner is not None else "a process that is not visible from here"
        return RunLocked(
            f"The run {folder} is in use by {who}.",
            "Only one process at a time may write to a run folder.",
            f"Watch it with `stage3-tui attach {folder}`, or stop it with `stage3-tui stop {folder}`.",
        )


def processes_holding(path: Path) -> list[int]:
    """The other processes that have a file open, as far as this user can see."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208
        try:
            is_open = any(file.samefile(path) for file in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # it has ended, or belongs to another user
            continue
        if is_open and int(pid) != os.getpid():
            found.append(int(pid))
    return sorted(found)


def _close_quietly(file: int) -> None:
    try:
        os.close(file)
    except OSError:
        return  # the parent had already released it
