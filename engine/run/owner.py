"""The process that works on a run, as recorded in the lock.

A pid is not enough: pids are reused, and a copy of the folder has the same record. So the record also has the boot id, the
start of the process in clock ticks since boot (independent of the wall clock), and the folder's inode, which no copy shares.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.core.nesting import parse_untrusted_json
from engine.core.reading import open_file
from engine.security.sanitize import visible_line

MAX_RECORD_BYTES = 4096
MAX_FIELD_CHARACTERS = 200

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat, counted from the one after the program's name (proc(5))."""
_DEAD_STATES = frozenset({"Z", "X", "x"})


@dataclass(frozen=True)
class Owner:
    """The owner of a run. Its texts are sanitized."""

    pid: int
    host: str
    since: str
    boot_id: str
    start_ticks: int
    folder_inode: int
    goes_on: bool = False
    """Whether it has released the run because it is about to replace itself (exec) and lock the run again."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_alive(self, folder: Path) -> bool:
        """Whether this process is running and owns `folder`. False for another host, which cannot be checked."""
        if self.host != socket.gethostname() or self.boot_id != boot_id() or self.folder_inode != _inode_of(folder):
            return False
        return self.start_ticks == start_ticks_of(self.pid)

    @property
    def is_this_process(self) -> bool:
        """Stays True when this process replaces itself (exec)."""
        return self._is(os.getpid())

    @property
    def hands_over_to_this_process(self) -> bool:
        """Whether it released the run so that this process can continue it: it is this process before exec, or the parent, which
        replaced itself by the supervisor of this process (the wizard runs in a child).
        """
        return self.is_this_process or (self.goes_on and self._is(os.getppid()))

    def _is(self, pid: int) -> bool:
        return (self.pid, self.start_ticks, self.boot_id) == (pid, start_ticks_of(pid), boot_id())


def this_process(folder: Path) -> Owner:
    """This process as the owner of `folder`."""
    pid = os.getpid()
    return Owner(
        pid=pid,
        host=visible_line(socket.gethostname(), MAX_FIELD_CHARACTERS),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        boot_id=boot_id(),
        start_ticks=start_ticks_of(pid) or 0,
        folder_inode=_inode_of(folder) or 0,
    )


def read_owner(path: Path) -> Owner | None:
    """The owner recorded in a lock file; None if it records none. The file is untrusted, so its texts are sanitized. Raises
    UnsafeError if it is not a regular file.
    """
    try:
        with open_file(path) as file:
            record = parse_untrusted_json(file.read(MAX_RECORD_BYTES))
    except (OSError, ValueError):
        return None
    return _owner_in(record) if isinstance(record, dict) else None


def _owner_in(record: dict[str, Any]) -> Owner | None:
    numbers = [record.get(name) for name in ("pid", "start_ticks", "folder_inode")]
    texts = [record.get(name) for name in ("host", "since", "boot_id")]
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(type(number) is int and 0 < number < 1 << 64 for number in numbers):
        return None
    pid, ticks, inode = numbers
    host, since, boot = (visible_line(str(text), MAX_FIELD_CHARACTERS) for text in texts)
    return Owner(pid, host, since, boot, ticks, inode, record.get("goes_on") is True)  # type: ignore[arg-type]


def boot_id() -> str:
    """The id of this boot; empty if unavailable."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def start_ticks_of(pid: int) -> int | None:
    """The start of a process, in clock ticks since boot; None if it has ended or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode("ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name may contain spaces and parentheses
    return None if fields[_STATE] in _DEAD_STATES else int(fields[_START])


def _inode_of(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None
