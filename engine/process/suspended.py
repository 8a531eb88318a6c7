"""Notice processes that somebody has stopped: SIGSTOP, a debugger, Ctrl+Z."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUSPENDED_SECONDS, LOOK_SECONDS = 5.0, 1.0


@dataclass
class SuspendedProcesses:
    """Of processes that `look` is given again and again, by a number of the caller's."""

    _since: dict[int, float] = field(default_factory=dict)
    _told: set[int] = field(default_factory=set)
    _looked: float = 0.0

    def look(self, pids: Mapping[int, int]) -> list[tuple[int, float]]:
        """The numbers of those that were found stopped, with the seconds since; with 0 those that go on again."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        return [change for number, pid in pids.items() if (change := self._change(number, is_suspended(pid), now))]

    def end(self) -> list[tuple[int, float]]:
        """All came to their end: those that were told of as stopped went on, perhaps between two looks."""
        over, self._told = sorted(self._told), set()
        return [(number, 0.0) for number in over]

    def _change(self, number: int, stopped: bool, now: float) -> tuple[int, float] | None:
        if not stopped:
            self._since.pop(number, None)
            if number not in self._told:
                return None
            self._told.discard(number)
            return number, 0.0
        seconds = now - self._since.setdefault(number, now)
        if seconds < SUSPENDED_SECONDS or number in self._told:
            return None
        self._told.add(number)
        return number, seconds


def is_suspended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")
