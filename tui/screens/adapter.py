"""Stage 5: a card that describes the Stage 2 adapter, and the checks."""

from __future__ import annotations

from textual.content import Content

from engine.core.events import Check
from engine.run.state import RunState, StageState
from tui.formatting import one_line
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY
from tui.widgets.stage_sections import card

ON_THE_CARD = ("rank", "alpha", "variant", "target modules", "trainable parameters", "size", "sha256", "effect")
"""Checks that describe the adapter, shown on the card instead of in the list."""


class AdapterView(StageView):
    STAGE = "adapter"

    def checks_title(self) -> str:
        return "Checks"

    def checks_shown(self, stage: StageState) -> tuple[Check, ...]:
        return tuple(check for check in stage.checks if check.name not in ON_THE_CARD)

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        by_name = {check.name: check for check in stage.checks}
        facts = tuple((name, by_name[name].detail) for name in ON_THE_CARD if name in by_name)

        def draw(width: int) -> list[Content]:
            rows = [(name, one_line(detail, "bold", 200)) for name, detail in facts]
            return [EMPTY, *card("Stage 2 adapter", rows, width)]

        self.text_view("extra").update(facts, draw if facts else None)
