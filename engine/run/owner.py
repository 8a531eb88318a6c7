"""The process that works on a run, as the lock names it.

Its number alone does not tell: numbers are used again, and a copy of the folder has the same record. So the record also has
what the kernel says about the process and cannot change while it lives: the boot that it belongs to, and its start in clock
ticks since that boot (no step of the wall clock moves them), and the folder's inode, which no copy has.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.security.sanitize import visible_line

LONGEST_RECORD = 4096
"""Bytes."""
LONGEST_FIELD = 200

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATE, _START = 0, 19
"""Fields of /proc/PID/stat, counted from the one after the program's name (proc(5))."""
_ENDED = frozenset({"Z", "X", "x"})


@dataclass(frozen=True)
class Owner:
    """Who took a run. The texts are fit for a terminal."""

    pid: int
    host: str
    since: str
    boot_id: str
    start_ticks: int
    folder_inode: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_alive(self, folder: Path) -> bool:
        """Whether this process runs, and works in `folder`. Of a process on another host nothing is known."""
        if self.host != socket.gethostname() or self.boot_id != boot_id() or self.folder_inode != _inode_of(folder):
            return False
        return self.start_ticks == start_ticks_of(self.pid)

    @property
    def is_this_process(self) -> bool:
        """Also of what this process was before it replaced itself (exec)."""
        return (self.pid, self.start_ticks, self.boot_id) == (os.getpid(), start_ticks_of(os.getpid()), boot_id())


def this_process(folder: Path) -> Owner:
    """This process at work in `folder`."""
    pid = os.getpid()
    return Owner(
        pid=pid,
        host=visible_line(socket.gethostname(), LONGEST_FIELD),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        boot_id=boot_id(),
        start_ticks=start_ticks_of(pid) or 0,
        folder_inode=_inode_of(folder) or 0,
    )


def read_owner(path: Path) -> Owner | None:
    """What a lock file says; None if it names nobody. The file may be anybody's: its texts are made visible."""
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(LONGEST_RECORD))
    except (OSError, ValueError, RecursionError):
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
    host, since, boot = (visible_line(str(text), LONGEST_FIELD) for text in texts)
    return Owner(pid, host, since, boot, ticks, inode)  # type: ignore[arg-type]


def boot_id() -> str:
    """Of this boot of the machine; empty if the kernel does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def start_ticks_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None if it has ended, or waits for its parent to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode("ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name may have blanks and brackets in it
    return None if fields[_STATE] in _ENDED else int(fields[_START])


def _inode_of(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None
