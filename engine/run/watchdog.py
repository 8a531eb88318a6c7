"""Notices that a stage has come to a standstill: nothing for far longer than what it does takes.

Nothing is ended for it. A person is told, and where each thread stands is written into the log: a lock that nobody gives back, a
download that waits, a computation that has no end look alike from outside.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from pathlib import Path

from engine.core.events import Event, Message, Stalled

LEAST_SECONDS = 300.0
"""A shorter silence is none: a model may take as long to load, and a slow processor as long for a batch."""
TIMES_THE_LONGEST = 5.0
"""What a stage is given, of the longest silence that it has come out of."""
FOR_PEOPLE = frozenset({"credentials"})
"""Stages that may wait for a person."""


class StallWatchdog:
    """`heard` is called with each event of a stage, `look` every now and then, from another thread."""

    def __init__(self, say: Callable[[Event], None], log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._log, self._clock = say, log, clock
        self._stage, self._told = "", False
        self._last, self._longest = clock(), 0.0

    def note_event(self, event: Event) -> None:
        now, stage = self._clock(), getattr(event, "stage", "") or self._stage
        if stage == self._stage:
            self._longest = max(self._longest, now - self._last)
        else:
            self._stage, self._longest = stage, 0.0
        if self._told:
            text = f"It goes on, after {(now - self._last) / 60:.1f} min without a sign."
            self._told = False
            self._say(Stalled(self._stage, 0.0))
            self._say(Message("info", text))
        self._last = now

    def check(self) -> None:
        silence = self._clock() - self._last
        if self._told or self._stage in FOR_PEOPLE or silence < max(LEAST_SECONDS, TIMES_THE_LONGEST * self._longest):
            return
        self._told = True
        self._log_thread_stacks(silence)
        self._say(Stalled(self._stage, silence))
        text = (
            f"Nothing has come from here for {silence / 60:.1f} min; what took longest before took {self._longest:.0f} s. "
            f"It may still be at work. Where each thread stands is in {self._log.name}; s stops the run as soon as it moves."
        )
        self._say(Message("warning", text))

    def _log_thread_stacks(self, silence: float) -> None:
        """Files, lines and names of functions; no values, and so no token."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"\nNothing from stage {self._stage} for {silence:.0f} s. Where each thread stands:\n")
            file.flush()
            faulthandler.dump_traceback(file)
