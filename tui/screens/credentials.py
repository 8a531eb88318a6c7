"""Stage 3: the Hugging Face token, hidden from the first character on."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from engine.errors import ExitCode
from engine.state import RunState, StageState
from tui.of_wizard import wizard_of
from tui.screens.base import READABLE, StageView
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.paper import Paper
from tui.widgets.token_field import TokenField

ADVICE = (
    "A token is made at https://huggingface.co/settings/tokens (type Read). It stays in memory, is shown nowhere, "
    "and is written nowhere. Without one, the login of the hub, or HF_TOKEN, is used; a run that reads only local "
    "files needs none."
)


class CredentialsView(StageView):
    STAGE = "credentials"

    def compose_page(self, page: str) -> ComposeResult:
        yield Paper(id="extra")
        if not self.source.read_only:
            with Horizontal(id="token-row"):
                yield Static(Content("Token "), id="token-label")
                yield TokenField(id="token")
        yield Paper(id="checks")

    def checks_title(self) -> str:
        return "Whose token it is, and what it may read"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        advice = Content.styled(ADVICE, "$muted")
        gap = self.gap
        self.paper("extra").put(len(gap), lambda width: [EMPTY, *paragraph(advice, min(width, READABLE)), *gap])
        refused = stage.failure is not None and stage.failure.exit_code == ExitCode.ACCESS
        if not self.source.read_only:
            self.query_one("#token-row").set_class(refused, "-wanted")

    @on(TokenField.Submitted)
    def token_given(self, event: TokenField.Submitted) -> None:
        """Hand the token to the app, which starts the stage with it."""
        event.stop()
        wizard_of(self).use_token(event.token)
