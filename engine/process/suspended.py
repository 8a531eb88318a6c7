"""Detect suspended processes: stopped by SIGSTOP, a debugger or Ctrl+Z."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUSPENDED_SECONDS, POLL_SECONDS = 5.0, 1.0


@dataclass
class SuspendedProcesses:
    """Tracks which of the processes passed to `poll` are suspended. The caller numbers the processes."""

    _since: dict[int, float] = field(default_factory=dict)
    _reported: set[int] = field(default_factory=set)
    _polled: float = 0.0

    def poll(self, pids: Mapping[int, int]) -> list[tuple[int, float]]:
        """What changed since the last poll: the number of each process, with the seconds since it was suspended, or 0 if it
        continues.

        pids   pid by the caller's number
        """
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return []
        self._polled = now
        return [change for number, pid in pids.items() if (change := self._change(number, is_suspended(pid), now))]

    def finish(self) -> list[tuple[int, float]]:
        """The last changes, once all processes have ended: those reported as suspended continued, perhaps between two polls."""
        resumed, self._reported = sorted(self._reported), set()
        return [(number, 0.0) for number in resumed]

    def _change(self, number: int, suspended: bool, now: float) -> tuple[int, float] | None:
        if not suspended:
            self._since.pop(number, None)
            if number not in self._reported:
                return None
            self._reported.discard(number)
            return number, 0.0
        seconds = now - self._since.setdefault(number, now)
        if seconds < SUSPENDED_SECONDS or number in self._reported:
            return None
        self._reported.add(number)
        return number, seconds


def is_suspended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")
