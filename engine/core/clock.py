"""The time for what is measured by difference: how long something took, how long it will take, what came first."""

from __future__ import annotations

import time

_WALL, _MONOTONIC = time.time(), time.monotonic()


def now() -> float:
    """Seconds since the epoch, by the wall clock as it stood when this process began, and from then on by the monotonic one: a
    step of the wall clock (NTP, a person, a virtual machine that wakes up) makes no duration negative or a day long.
    """
    return _WALL + (time.monotonic() - _MONOTONIC)
