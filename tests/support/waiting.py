"""Wait for what another process does."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], what: str, terminal: int | None = None, seconds: float = 120) -> None:
    """Fails after so many seconds, with `what` did not come. Meanwhile a terminal is read, so that nobody waits for us."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"no {what}"
        if terminal is not None and select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 1 << 16)
        time.sleep(0.01)
