"""Notify the user through the terminal: a window title while a stage runs, a bell and a notification at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.core.stage_table import STAGE, STAGES
from engine.machine.session_lifetime import in_multiplexer
from engine.run.state import RunState
from tui.formatting import duration
from tui.terminal import sequences
from tui.widgets.run_progress import percent_done
from tui.widgets.status_lines import outcome_of

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

PROGRAM = "stage3-tui"
SAFE_TO_CLOSE = "You can close this terminal: the run continues, and `stage3-tui attach` shows it again."
ENDED_AT_LOGOUT = (
    f"Logging out ends this run, even in tmux: stage {STAGE['toolchain'].title} explains how to prevent it."
)


class Notifications:
    def __init__(self, wizard: WizardApp) -> None:
        self._wizard = wizard
        self._title = ""
        self._finished = wizard.shown_state.finished
        self._was_running = False
        self._logout_checked = False
        self._stalled_since = wizard.shown_state.stalled_since

    def update(self, state: RunState, running: bool) -> None:
        """Notify the user of changes since the last call."""
        title = title_of(state)
        if title != self._title:
            self._title = title
            self._wizard.write_sequence(sequences.title(title))
        if running and not self._was_running:
            self._logout_checked = self._wizard.source.read_only
        self._was_running = running
        if running and not self._logout_checked and state.stages["toolchain"].status == "done":
            self._logout_checked = True
            self._notify_about_logout(state.stages["toolchain"].facts)
        if state.finished is not None and state.finished is not self._finished:
            self._notify_of_end(state)
        self._finished = state.finished
        if state.stalled_since is not None and state.stalled_since != self._stalled_since:
            silence = duration(self._wizard.source.now() - state.stalled_since)
            self._wizard.write_sequence(sequences.notification(f"{PROGRAM}: silent for {silence}"))
        self._stalled_since = state.stalled_since

    def _notify_about_logout(self, toolchain: Mapping[str, Any]) -> None:
        if toolchain.get("ends_at_logout"):
            self._wizard.notify_user(ENDED_AT_LOGOUT, "warning")
        elif not in_multiplexer():
            self._wizard.notify_user(SAFE_TO_CLOSE)

    def _notify_of_end(self, state: RunState) -> None:
        assert state.finished is not None
        code = state.finished.exit_code
        outcome = outcome_of(state) if code == 0 else f"ended with exit code {code}"
        began = state.stages[STAGES[0]].started
        took = f"after {duration(state.last_time - began)}" if began is not None else ""
        self._wizard.write_sequence(sequences.notification(f"{PROGRAM}: {outcome} {took}".strip()))
        if not self._is_on_screen(state, code):
            self._wizard.notify_user(
                f"{outcome[0].upper()}{outcome[1:]}. {state.finished.summary}", "information" if code == 0 else "error"
            )

    def _is_on_screen(self, state: RunState, code: int) -> bool:
        """Whether the screen shows the stage that ended last, and so the outcome."""
        if self._wizard.stage_on_screen != state.latest:
            return False
        return code == 0 or state.stages[state.latest].failure is not None


def title_of(state: RunState) -> str:
    """The window's title: stage and percentage while a stage runs."""
    current = state.current
    if current is None:
        return PROGRAM
    share = percent_done(current)
    return f"{STAGES.index(current.name) + 1}/10 {STAGE[current.name].title} {share}".strip() + f" · {PROGRAM}"
