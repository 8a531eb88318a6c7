"""Signals of a run without a screen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from engine.core.errors import ExitCode


def install_signal_handlers(request: Callable[[str, ExitCode], None]) -> None:
    """SIGTERM and SIGINT: finish the step, save, leave; a second one: at once. SIGHUP: the terminal is gone, the run goes on."""
    heard: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if heard:
            os._exit(128 + number)
        heard.append(number)
        request(signal.Signals(number).name, ExitCode(128 + number))

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
