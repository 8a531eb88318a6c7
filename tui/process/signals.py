"""Signal handling for a run without a screen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from engine.core.errors import ExitCode

SAME_SECONDS = 1.0
"""A SIGTERM this soon after another one counts as the same: if every process of a job receives it, the parent forwards it, too."""


class StopSignals:
    """Remembers the first signal that requested a stop."""

    def __init__(self) -> None:
        self._first: tuple[str, float] | None = None

    def is_second(self, name: str) -> bool:
        """Whether a stop was requested before, and this is another request."""
        now = time.monotonic()
        if self._first is None:
            self._first = name, now
            return False
        first, since = self._first
        return not (name == first == "SIGTERM" and now - since < SAME_SECONDS)


def install_signal_handlers(request: Callable[[str, ExitCode], None]) -> None:
    """SIGTERM and SIGINT: finish the step, save, and exit; a second one: exit at once. SIGHUP: ignore it, the run continues."""
    signals = StopSignals()

    def handle(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if signals.is_second(name):
            os._exit(128 + number)
        request(name, ExitCode(128 + number))

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
