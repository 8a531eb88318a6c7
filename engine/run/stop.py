"""A flag that requests a run to save and stop; stages check it between steps."""

from __future__ import annotations

from threading import Event

from engine.core.errors import ExitCode, Stopped


class StopToken:
    def __init__(self) -> None:
        self._event = Event()
        self._reason = ""
        self._exit_code = ExitCode.TERMINATED

    def request(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Request a stop. Later requests have no effect."""
        if not self._event.is_set():
            self._reason, self._exit_code = reason, exit_code
            self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake up as soon as a stop is requested. Returns whether one is."""
        return self._event.wait(seconds)

    def raise_if_requested(self) -> None:
        """Raises Stopped. Call it only where everything made so far is on disk."""
        if self._event.is_set():
            raise Stopped(self._reason, self._exit_code)
