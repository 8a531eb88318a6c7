"""Stage 5: the Stage 2 adapter, property by property."""

from __future__ import annotations

from tui.screens.base import StageView


class AdapterView(StageView):
    STAGE = "adapter"

    def checks_title(self) -> str:
        return "Properties of the Stage 2 adapter"
