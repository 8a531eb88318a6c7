"""Stage 2: the tools of this machine."""

from __future__ import annotations

from engine.run.state import RunState, StageState
from tui.formatting import one_line
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY, paragraph

INSTALLS = "Something is missing. Switch on the option install (o), and this stage installs what it can with uv."


class ToolchainView(StageView):
    STAGE = "toolchain"

    def checks_title(self) -> str:
        return "Tools"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        missing = any(check.status in ("failed", "warning") for check in stage.checks)
        hint = missing and not self.source.config.install and not self.source.read_only
        text = one_line(INSTALLS, "$check-warning")
        self.paper("extra").put(hint, (lambda width: [EMPTY, *paragraph(text, width)]) if hint else None)
