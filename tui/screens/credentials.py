"""Stage 3: the Hugging Face token, hidden from the first character."""

from __future__ import annotations

import re

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from engine.core.errors import ExitCode
from engine.core.events import Check
from engine.hub.login import LOGIN_CHECK
from engine.hub.urls import TOKENS_PAGE
from engine.run.state import RunState, StageState
from tui.app_protocol import wizard_of
from tui.screens.base import READABLE, StageView
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.text_view import TextView
from tui.widgets.token_field import TokenField

ADVICE = (
    f"Create a token at {TOKENS_PAGE} (type Read). It is never shown, {{where}}. Without one, the run uses HF_TOKEN or "
    "the Hub's own login; d logs in with a browser, on any device. A run with only local files needs no token."
)
IN_MEMORY, IN_THE_STORE = "and stays in memory", "and is saved in the Hub's own store (store_token)"
WAITING = "Waiting for you: "
_ADDRESS = re.compile(r"https?://\S+")


class CredentialsView(StageView):
    STAGE = "credentials"

    def compose_page(self, page: str) -> ComposeResult:
        yield TextView(id="extra")
        if not self.source.read_only:
            with Horizontal(id="token-row"):
                yield Static(Content("Token "), id="token-label")
                yield TokenField(id="token")
        yield TextView(id="checks")

    def checks_title(self) -> str:
        return "Account and permissions"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        where = IN_THE_STORE if self.source.config.store_token else IN_MEMORY
        login, gap = login_of(stage), self.gap
        waiting = Content.assemble((WAITING, "$check-warning"), (login, "bold"))
        text = waiting if login else Content.styled(ADVICE.format(where=where), "$muted")
        self.text_view("extra").update(
            (login, where, len(gap)), lambda width: [EMPTY, *paragraph(text, min(width, READABLE)), *gap]
        )
        refused = stage.failure is not None and stage.failure.exit_code == ExitCode.ACCESS
        if not self.source.read_only:
            self.query_one("#token-row").set_class(refused, "-required")

    def checks_shown(self, stage: StageState) -> tuple[Check, ...]:
        login = login_of(stage)
        return tuple(check for check in stage.checks if check.name != LOGIN_CHECK or not login)

    def copy_text(self, state: RunState) -> tuple[str, str]:
        address = _ADDRESS.search(login_of(state.stages[self.STAGE]))
        return (address[0], "the page of the login") if address else super().copy_text(state)

    @on(TokenField.Submitted)
    def token_given(self, event: TokenField.Submitted) -> None:
        """Hand the token to the app, which starts the stage with it."""
        event.stop()
        wizard_of(self).use_token(event.token)


def login_of(stage: StageState) -> str:
    """The page and code of a browser login that waits for the user; empty if none does."""
    check = next((check for check in stage.checks if check.name == LOGIN_CHECK), None)
    return check.detail if check is not None and check.status == "warning" and stage.status == "running" else ""
