"""Stage 6: the long run in small, and what it foretells."""

from __future__ import annotations

from textual.content import Content

from engine.state import RunState, StageState
from tui.screens.base import StageView
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY
from tui.widgets.parts import section


class PreflightView(StageView):
    STAGE = "preflight"

    def checks_title(self) -> str:
        return "Trials and forecast"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        reading = state.telemetry[-1] if state.telemetry else None
        peaks = state.peak_gpu_bytes

        def draw(width: int) -> list[Content]:
            return (
                [EMPTY, section("Memory", "", width), *gpu_lines(reading, peaks, width)] if reading is not None else []
            )

        self.paper("extra").put(reading, draw if reading is not None else None)
