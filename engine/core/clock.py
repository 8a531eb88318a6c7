"""A clock for durations and order, which never runs backwards."""

from __future__ import annotations

import time

_WALL, _MONOTONIC = time.time(), time.monotonic()


def now() -> float:
    """Seconds since the epoch: the wall clock at the start of this process, plus the monotonic time since. If the wall clock is
    set (by NTP, a user, or a virtual machine that wakes up), no duration becomes negative or a day long.
    """
    return _WALL + (time.monotonic() - _MONOTONIC)
