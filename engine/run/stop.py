"""One flag that asks a run to save and stop; whoever works looks at it between two steps."""

from __future__ import annotations

from threading import Event

from engine.core.errors import ExitCode, Stopped


class StopToken:
    def __init__(self) -> None:
        self._event = Event()
        self._reason = ""
        self._exit_code = ExitCode.TERMINATED

    def request(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Ask once; later requests change nothing."""
        if not self._event.is_set():
            self._reason, self._exit_code = reason, exit_code
            self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, and wake up at once when a stop is requested; whether one is."""
        return self._event.wait(seconds)

    def raise_if_requested(self) -> None:
        """Raises Stopped. Call it where everything made so far is on disk."""
        if self._event.is_set():
            raise Stopped(self._reason, self._exit_code)
