"""Stage 10: the archive, what is in it, and how to bring it home."""

from __future__ import annotations

from textual.content import Content

from engine.state import RunState, StageState
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.parts import section
from tui.widgets.words import line


class PackagingView(StageView):
    STAGE = "packaging"

    def checks_title(self) -> str:
        return "The archive"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        scp = scp_line(stage)

        def draw(width: int) -> list[Content]:
            advice = line("c copies this line through the terminal, and writes it to logs/copied.txt.", "$muted")
            return [
                EMPTY,
                section("Bring it home", "", width),
                *line(scp, "bold $accent").fold(width),
                *paragraph(advice, width),
            ]

        self.paper("extra").put(scp, draw if scp else None)

    def copy_text(self, state: RunState) -> tuple[str, str]:
        scp = scp_line(state.stages[self.STAGE])
        return (scp, "the scp line") if scp else (str(self.source.run.archive), "the archive's path")


def scp_line(stage: StageState) -> str:
    """The command that brings the archive home; empty until it is known."""
    found = (check.detail for check in stage.checks if "scp " in check.detail)
    detail = next(found, "")
    return detail[detail.index("scp ") :].splitlines()[0] if detail else ""
