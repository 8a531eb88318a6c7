"""The worker thread under the wizard, and the snapshot that the screen polls.

The engine's listener folds each event under a lock and returns: it never waits for the screen, so a
stalled or lost terminal does not slow the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

from engine.core import clock, layout
from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, RestartNeeded
from engine.core.events import Message, RunFinished
from engine.core.stage_table import STAGES
from engine.machine.error_mapping import as_stage3_error
from engine.pipeline.plan import PlannedStage, planned_stages
from engine.pipeline.session import Listener, Session, failure_text
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Entry, read_journal
from engine.run.state import RunState, fold
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from tui.runs.run_source import as_idle

log = logging.getLogger(__name__)

SessionFactory = Callable[[Context, Listener], Any]


class Runner:
    """A run that this process owns: the caller has acquired `run`, and releases it after `join`."""

    read_only = False
    hands_off = False
    allows_decisions = True

    def __init__(
        self,
        config: Stage3Config,
        run: Run,
        *,
        token: Secret | None = None,
        session_factory: SessionFactory = Session,
        may_query_hub: bool = False,
    ) -> None:
        self.run = run
        self.config = config
        self.may_query_hub = may_query_hub
        self.exit_code: ExitCode | None = None
        """Exit code of the last completed start."""
        self.restart_until: str | None = None
        """The last stage for a fresh process to run; None if this process can continue."""
        self._token = token
        self._context: Context | None = None
        """Context of the newest start."""
        self._session_factory = session_factory
        self._lock = Lock()
        self._thread: Thread | None = None
        self._stop = StopToken()
        self._state = as_idle(fold(read_journal(run / layout.EVENTS_JSONL)))

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def open(self) -> None:
        """Nothing to do: the state is folded as it happens."""

    def close(self) -> None:
        """Nothing to do: the run continues, and `join` waits for it."""

    def snapshot(self) -> RunState:
        with self._lock:
            return self._state

    def now(self) -> float:
        return clock.now()

    def start(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> None:
        """Run the pipeline in the engine's thread. Raises RuntimeError if it is running."""
        if self.running:
            raise RuntimeError("the engine is already running")
        self.exit_code = None
        self._stop = StopToken()  # a used token stays used
        self._context = Context(self.config, self.run, self._stop, self._token)
        self._thread = Thread(target=self._work, args=(self._context, until, redo_from), name="engine", daemon=False)
        self._thread.start()

    def plan(self, until: str) -> list[PlannedStage]:
        return planned_stages(Context(self.config, Run(self.run.folder), token=self._token), until=until)

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        self._stop.request(reason, exit_code)

    @property
    def token(self) -> Secret | None:
        """The token in use: passed in, or found by the newest start."""
        return self._token if self._context is None else self._context.token

    def join(self, timeout: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    def set_token(self, token: Secret) -> None:
        """Takes effect at the next start."""
        self._token = token

    def set_config(self, config: Stage3Config) -> None:
        """Takes effect at the next start."""
        self.config = config

    def _work(self, context: Context, until: str, redo_from: str | None) -> None:
        try:
            session = self._session_factory(context, self._listen)
            try:
                self.exit_code = session.run(until=until, redo_from=redo_from)
            finally:
                session.close()
        except RestartNeeded:
            self.restart_until = until
        except Exception as error:  # an exception in a thread goes unseen, so show it
            log.exception("the session crashed")
            self._show_error(error)

    def _listen(self, entry: Entry) -> None:
        try:
            with self._lock:
                self._state = self._state.apply_entry(entry)
        except Exception:  # a failure to show an event must not stop the run
            log.exception("could not fold an event: %s", entry.event.kind())

    def _show_error(self, error: Exception) -> None:
        """Show a failure that could not be written to the journal."""
        known = as_stage3_error(error)
        code = known.exit_code if known is not None else ExitCode.BUG
        now = self.now()
        with self._lock:
            state = self._state.apply(Message("error", failure_text(error)), now)
            self._state = as_idle(state.apply(RunFinished(int(code), failure_text(error)), now))
        self.exit_code = code
