"""Stage 6: the rehearsal and its forecast."""

from __future__ import annotations

from textual.content import Content

from engine.core.events import Forecast
from engine.core.stage_table import STAGE
from engine.run.state import RunState, StageState
from tui.formatting import approx_duration, memory
from tui.screens.base import StageView
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY
from tui.widgets.stage_sections import card, section


class PreflightView(StageView):
    STAGE = "preflight"

    def checks_title(self) -> str:
        return "Rehearsal and forecast"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        reading, forecast = state.telemetry[-1] if state.telemetry else None, state.forecast
        peaks, own_peak = state.peak_gpu_bytes, state.peak_rss_bytes

        def draw(width: int) -> list[Content]:
            lines = [EMPTY, *card("Forecast", forecast_rows(forecast), width)] if forecast is not None else []
            if reading is not None:
                lines += [EMPTY, section("Memory", "", width)]
                lines += gpu_lines(reading, peaks, forecast, width, peak_of_process=own_peak)
            return lines

        self.paper("extra").put((reading, forecast), draw if reading is not None or forecast is not None else None)


def forecast_rows(forecast: Forecast) -> list[tuple[str, Content]]:
    """Time and memory of each long stage, and disk space."""
    whose = "of the GPU" if forecast.on_gpu else "of this machine"
    rows = []
    for stage, seconds in forecast.seconds.items():
        peak = forecast.peak_bytes.get(stage)
        told = f"about {approx_duration(seconds)}" + (f", peak memory {memory(peak)} {whose}" if peak else "")
        rows.append((STAGE[stage].title, Content.styled(told, "bold")))
    whole = approx_duration(sum(forecast.seconds.values()))
    return [
        *rows,
        ("Total", Content.styled(f"about {whole}", "bold")),
        ("Disk", Content.styled(f"about {memory(forecast.disk_bytes)}", "bold")),
    ]
