"""Notifications through the terminal: the window title while a stage runs; a bell and a notification at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.core.stage_table import STAGE, STAGES
from engine.machine.session_lifetime import in_multiplexer
from engine.run.state import RunState
from tui.formatting import duration
from tui.terminal import sequences
from tui.widgets.progress_of import share_done
from tui.widgets.status_lines import how_far

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

PROGRAM = "stage3-tui"
SAFE = "You can close this terminal: the run continues, and `stage3-tui attach` shows it again."
ENDED_AT_LOGOUT = f"A logout ends this run, even in tmux: see stage {STAGE['toolchain'].title} to prevent it."


class Notifications:
    def __init__(self, wizard: WizardApp) -> None:
        self._wizard = wizard
        self._title = ""
        self._finished = wizard.seen.finished
        self._was_running = False
        self._has_told_what_lasts = False
        self._stalled_since = wizard.seen.stalled_since

    def update(self, state: RunState, running: bool) -> None:
        """Notify about what is new."""
        title = title_of(state)
        if title != self._title:
            self._title = title
            self._wizard.write_sequence(sequences.title(title))
        if running and not self._was_running:
            self._has_told_what_lasts = self._wizard.source.read_only
        self._was_running = running
        if running and not self._has_told_what_lasts and state.stages["toolchain"].status == "done":
            self._has_told_what_lasts = True
            self._tell_what_lasts(state.stages["toolchain"].facts)
        if state.finished is not None and state.finished is not self._finished:
            self._tell_the_end(state)
        self._finished = state.finished
        if state.stalled_since is not None and state.stalled_since != self._stalled_since:
            silence = duration(self._wizard.source.now() - state.stalled_since)
            self._wizard.write_sequence(sequences.notification(f"{PROGRAM}: silent for {silence}"))
        self._stalled_since = state.stalled_since

    def _tell_what_lasts(self, toolchain: Mapping[str, Any]) -> None:
        if toolchain.get("ends_at_logout"):
            self._wizard.notify_user(ENDED_AT_LOGOUT, "warning")
        elif not in_multiplexer():
            self._wizard.notify_user(SAFE)

    def _tell_the_end(self, state: RunState) -> None:
        assert state.finished is not None
        code = state.finished.exit_code
        how = how_far(state) if code == 0 else f"ended with exit code {code}"
        began = state.stages[STAGES[0]].started
        took = f"after {duration(state.last_time - began)}" if began is not None else ""
        self._wizard.write_sequence(sequences.notification(f"{PROGRAM}: {how} {took}".strip()))
        if not self._is_read_already(state, code):
            self._wizard.notify_user(
                f"The run: {how}. {state.finished.summary}", "information" if code == 0 else "error"
            )

    def _is_read_already(self, state: RunState, code: int) -> bool:
        """Whether the screen shows the stage that ended last."""
        if self._wizard.stage_on_screen != state.latest:
            return False
        return code == 0 or state.stages[state.latest].failure is not None


def title_of(state: RunState) -> str:
    """Stage and percentage while one runs."""
    current = state.current
    if current is None:
        return PROGRAM
    share = share_done(current)
    return f"{STAGES.index(current.name) + 1}/10 {STAGE[current.name].title} {share}".strip() + f" · {PROGRAM}"
