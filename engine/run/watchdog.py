"""Detect a stage that has stalled: silent for far longer than its steps usually take.

Nothing is killed. The user gets a warning, and the stack of each thread goes into the log: from outside, a lock that is
never released, a hanging download and an endless computation look alike.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from pathlib import Path

from engine.core.events import Event, EventSink, Message, Stalled

MIN_SECONDS = 300.0
"""Never warn earlier: loading a model, or a batch on a slow processor, may take this long."""
TIMES_THE_LONGEST = 5.0
"""How long a stage may be silent, as a multiple of its longest silence so far."""
INTERACTIVE_STAGES = frozenset({"credentials"})
"""Stages that may wait for the user."""


class StallWatchdog:
    """Call `note_event` with each event of a stage, and `check` periodically from another thread."""

    def __init__(self, emit: EventSink, log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._log, self._clock = emit, log, clock
        self._stage, self._warned = "", False
        self._last, self._longest = clock(), 0.0

    def note_event(self, event: Event) -> None:
        now, stage = self._clock(), getattr(event, "stage", "") or self._stage
        if stage == self._stage:
            self._longest = max(self._longest, now - self._last)
        else:
            self._stage, self._longest = stage, 0.0
        if self._warned:
            text = f"The stage continues after {(now - self._last) / 60:.1f} min of silence."
            self._warned = False
            self._emit(Stalled(self._stage, 0.0))
            self._emit(Message("info", text))
        self._last = now

    def check(self) -> None:
        silence = self._clock() - self._last
        limit = max(MIN_SECONDS, TIMES_THE_LONGEST * self._longest)
        if self._warned or self._stage in INTERACTIVE_STAGES or silence < limit:
            return
        self._warned = True
        self._log_thread_stacks(silence)
        self._emit(Stalled(self._stage, silence))
        text = (
            f"No progress for {silence / 60:.1f} min; the longest step so far took {self._longest:.0f} s. It may still be "
            f"working. The stack of each thread is in {self._log.name}; s stops the run as soon as it continues."
        )
        self._emit(Message("warning", text))

    def _log_thread_stacks(self, silence: float) -> None:
        """Log files, lines and function names, but no values, and so no tokens."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"\nNo progress in stage {self._stage} for {silence:.0f} s. The stack of each thread:\n")
            file.flush()
            faulthandler.dump_traceback(file)
