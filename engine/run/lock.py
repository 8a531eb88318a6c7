"""The lock on a run folder: the kernel's (flock), and beside it a record of who holds it, for people and for file systems on
which flock does nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from engine.core import layout
from engine.core.errors import RunLocked
from engine.run import stop_request
from engine.run.owner import Owner, read_owner, this_process
from engine.security.sanitize import visible_line


class RunLock:
    """Of one run folder. Takes it, lets it go, and tells who has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / layout.LOCK_FILE
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """By this object."""
        return self._file is not None

    def owner(self) -> Owner | None:
        """The live process that holds the run; None if there is none."""
        owner = read_owner(self._path)
        return owner if owner is not None and owner.is_alive(self._folder) else None

    def take(self) -> None:
        """Until `release` or the process's end. Raises RunLocked with the owner, and OSError.

        A request to stop that was left for an earlier owner is removed before this process is named as the owner: whatever
        comes after that is for this process.
        """
        self._path.parent.mkdir(exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock(file)
            self._sign(file)
        except BaseException:
            os.close(file)
            raise
        # A forked child (a data loader's worker) must not keep the lock when this process is gone.
        os.register_at_fork(after_in_child=lambda: _close_quietly(file))
        self._file = file

    def release(self, *, goes_on: bool = False) -> None:
        """Let go. With `goes_on` the record stays: this process is about to replace itself (exec) and to take the run again,
        and a request to stop that comes meanwhile is for it.
        """
        if self._file is None:
            return
        if not goes_on:
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = None

    def is_in_place(self) -> bool:
        """Whether the file that is held is the one at its path."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken() from None
        owner = self.owner()
        if owner is not None and not owner.is_this_process:
            # The kernel's lock was free, yet its owner lives: a file system on which flock is a no-op.
            raise self._taken()

    def _sign(self, file: int) -> None:
        before = read_owner(self._path)
        if before is None or not before.is_this_process:
            stop_request.forget(self._folder)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(this_process(self._folder).as_dict()).encode(), 0)

    def _taken(self) -> RunLocked:
        folder = visible_line(str(self._folder))
        owner = self.owner()
        if owner is None and (left := processes_with(self._path)):
            numbers = " ".join(map(str, left))
            return RunLocked(
                f"The run {folder} is held by what an ended process left behind: {numbers}.",
                "They have its lock open.",
                f"Wait for them, or end them: `kill {numbers}`.",
            )
        who = str(owner) if owner is not None else "a process that this machine does not know"
        return RunLocked(
            f"The run {folder} is taken by {who}.",
            "One process at a time may write to a run folder.",
            f"Watch it with `stage3-tui attach {folder}`, or stop it with `stage3-tui stop {folder}`.",
        )


def processes_with(path: Path) -> list[int]:
    """The processes that have a file open, as far as this user may see."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208
        try:
            is_open = any(file.samefile(path) for file in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:  # it has ended, or is another user's
            continue
        if is_open and int(pid) != os.getpid():
            found.append(int(pid))
    return sorted(found)


def _close_quietly(file: int) -> None:
    try:
        os.close(file)
    except OSError:
        return  # the parent had released it already
