"""Waits for another process."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], what: str, terminal: int | None = None, seconds: float = 120) -> None:
    """Wait for a condition, or fail with `what` after `seconds`. Meanwhile, `terminal` is read, so that its program does
    not block.
    """
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"no {what}"
        if terminal is not None and select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 1 << 16)
        time.sleep(0.01)
