"""Stage 4: installed packages, and the live log of an installation."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from engine.run.state import RunState, StageState
from tui.formatting import one_line
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY
from tui.widgets.stage_sections import section
from tui.widgets.text_view import TextView

LINES_SHOWN = 12


class DependenciesView(StageView):
    STAGE = "dependencies"

    def compose_page(self, page: str) -> ComposeResult:
        yield TextView(id="extra")
        yield TextView(id="checks")

    def checks_title(self) -> str:
        return "Packages"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        log = tuple(message.text for _, message in state.messages if message.stage == self.STAGE)[-LINES_SHOWN:]
        shown = log if stage.status in ("running", "failed") else ()

        def draw(width: int) -> list[Content]:
            return [
                EMPTY,
                section("Live log", "", width),
                *(one_line(text, "$muted").truncate(width, ellipsis=True) for text in shown),
            ]

        self.text_view("extra").update(shown, draw if shown else None)
