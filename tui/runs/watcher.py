"""`attach`: another process's run, read from its journal. It can be asked to stop, and its pairs decided about if allowed."""

from __future__ import annotations

import logging
import time
from threading import Event as Flag
from threading import Lock, Thread
from typing import TYPE_CHECKING

from engine.core import layout
from engine.core.errors import ExitCode, UnsafeError
from engine.run.folder import Run
from engine.run.journal import entry_from_dict
from engine.run.state import RunState, fold_line
from engine.storage.files import write_atomically
from tui.runs.run_source import as_idle
from tui.runs.tail import JsonlTail

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

POLL_SECONDS = 0.25
OWNER_SECONDS = 1.0

log = logging.getLogger(__name__)


class Watcher:
    """Reads `logs/events.jsonl` as it grows, in its own thread between `open` and `close`."""

    read_only = True
    token = None
    may_query_hub = False

    def __init__(
        self, run: Run, config: Stage3Config, *, hands_off: bool = False, allows_decisions: bool = False
    ) -> None:
        self.hands_off, self.allows_decisions = hands_off, allows_decisions
        self.run = run
        self.config = config
        self._tail = JsonlTail(run / layout.EVENTS_JSONL)
        self._lock = Lock()
        self._state, self._read = RunState(), time.monotonic()
        """`_read`: when the newest event was read."""
        self._resting: tuple[RunState, RunState] | None = None
        self._owner_alive, self._owner_asked = False, 0.0
        self._done = Flag()
        self._thread = Thread(target=self._poll, name="watcher", daemon=True)
        self.read()

    def open(self) -> None:
        """Start following the journal."""
        self._thread.start()

    def close(self) -> None:
        self._done.set()

    @property
    def running(self) -> bool:
        """Whether a live process holds the run; checked at most once a second."""
        now = time.monotonic()
        if now - self._owner_asked >= OWNER_SECONDS:
            self._owner_alive, self._owner_asked = self.run.owner() is not None, now
        return self._owner_alive

    @property
    def exit_code(self) -> ExitCode | None:
        finished = self.snapshot().finished
        if finished is None or self.running:
            return None
        return ExitCode(finished.exit_code) if finished.exit_code in ExitCode._value2member_map_ else ExitCode.BUG

    def snapshot(self) -> RunState:
        with self._lock:
            state = self._state
        if self.running:
            return state
        if self._resting is None or self._resting[0] is not state:
            self._resting = (state, as_idle(state))
        return self._resting[1]

    def now(self) -> float:
        with self._lock:
            return self._state.last_time + (time.monotonic() - self._read)

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Leave the request in the run folder, where the owner polls for it. Raises UnsafeError if this screen only watches."""
        if self.hands_off:
            raise UnsafeError(
                "This screen only watches.", "It was started that way.", "Run `stage3-tui stop` to stop the run."
            )
        write_atomically(self.run / layout.STOP_REQUEST, f"{reason}\n".encode())

    def read(self) -> int:
        """Fold new lines; returns how many."""
        piece = self._tail.read()
        state = RunState() if piece.was_replaced else self._state
        for line in piece.lines:
            state = fold_line(state, entry_from_dict(line.record))
        with self._lock:
            if state is not self._state:
                self._state, self._read = state, time.monotonic()
        return len(piece.lines)

    def _poll(self) -> None:
        while not self._done.is_set():
            try:
                new_lines = self.read()
            except (OSError, UnsafeError) as error:  # a hiccup of a network file system: try again next time
                log.warning("could not read the journal: %s", error)
                new_lines = 0
            if not new_lines:
                self._done.wait(POLL_SECONDS)
