"""The clock for durations and order: how long something took, how long it will take, what came first."""

from __future__ import annotations

import time

_WALL, _MONOTONIC = time.time(), time.monotonic()


def now() -> float:
    """Seconds since the epoch: the wall clock when this process began, plus what the monotonic clock has counted since. A step of
    the wall clock (NTP, a person, a virtual machine that wakes up) makes no duration negative or a day long.
    """
    return _WALL + (time.monotonic() - _MONOTONIC)
