"""Stage 2: the tools of this machine."""

from __future__ import annotations

from engine.run.state import RunState, StageState
from tui.formatting import one_line
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY, paragraph

INSTALL_HINT = "Something is missing. Turn on the option install (o) to let this stage install what it can with uv."


class ToolchainView(StageView):
    STAGE = "toolchain"

    def checks_title(self) -> str:
        return "Tools"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        missing = any(check.status in ("failed", "warning") for check in stage.checks)
        shows_hint = missing and not self.source.config.install and not self.source.read_only
        hint = one_line(INSTALL_HINT, "$check-warning")
        self.text_view("extra").update(
            shows_hint, (lambda width: [EMPTY, *paragraph(hint, width)]) if shows_hint else None
        )
