"""Stage 6: the rehearsal and its forecast, and the pilot's figures and pairs on a separate page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.content import Content

from engine.core.events import Forecast, PilotDone
from engine.core.stage_table import STAGE
from engine.pairs.data.record import text_labels
from engine.run.state import RunState, StageState
from tui.formatting import approx_duration, memory, one_line, percent
from tui.screens.base import StageView
from tui.widgets.gauge import bar, forecast_mark
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY, join_fitting
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import card, section
from tui.widgets.text_view import TextView


class PreflightView(StageView):
    STAGE = "preflight"
    OVERVIEW, PILOT = OWN_PAGES = ("Overview", "Pilot")

    def page_for(self, state: RunState) -> str:
        """The pilot's page if the stage refused because of the pilot."""
        refused = state.stages[self.STAGE].status == "refused" and state.pilot is not None
        return self.PILOT if refused else self.OVERVIEW

    def compose_page(self, page: str) -> ComposeResult:
        if page == self.PILOT:
            yield TextView(id="pilot")
        else:
            yield from super().compose_page(page)

    def checks_title(self) -> str:
        return "Rehearsal and forecast"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        if self.page == self.PILOT:
            pilot = state.pilot
            self.text_view("pilot").update((pilot,), lambda width: pilot_lines(pilot, width))
            return
        reading, forecast = state.telemetry[-1] if state.telemetry else None, state.forecast
        peaks, own_peak = state.peak_gpu_bytes, state.peak_rss_bytes

        def draw(width: int) -> list[Content]:
            lines = [EMPTY, *card("Forecast", forecast_rows(forecast), width)] if forecast is not None else []
            if reading is not None:
                lines += [EMPTY, section("Memory", "", width)]
                lines += gpu_lines(reading, peaks, forecast, width, peak_of_process=own_peak)
            return lines

        self.text_view("extra").update(
            (reading, forecast), draw if reading is not None or forecast is not None else None
        )


def forecast_rows(forecast: Forecast) -> list[tuple[str, Content]]:
    """Time and memory of each long stage, and disk space."""
    whose = "of the GPU" if forecast.on_gpu else "of this machine"
    rows = []
    for stage, seconds in forecast.seconds.items():
        peak = forecast.peak_bytes.get(stage)
        text = f"about {approx_duration(seconds)}" + (f", peak memory {memory(peak)} {whose}" if peak else "")
        rows.append((STAGE[stage].title, Content.styled(text, "bold")))
    total = approx_duration(sum(forecast.seconds.values()))
    return [
        *rows,
        ("Total", Content.styled(f"about {total}", "bold")),
        ("Disk", Content.styled(f"about {memory(forecast.disk_bytes)}", "bold")),
    ]


MAX_BAR = 60


def pilot_lines(pilot: PilotDone | None, width: int) -> list[Content]:
    """Each share with its interval and the gate's threshold, then the pairs."""
    if pilot is None:
        return [EMPTY, Content.styled("No pilot yet.", "$muted")]
    lines = [EMPTY, section("What the pilot predicts for all prompts", f"from {pilot.pairs}", width)]
    for figure in pilot.figures:
        lines += [EMPTY, *figure_lines(figure, width)]
    for number, pair in enumerate(pilot.shown, start=1):
        lines += [EMPTY, *pair_lines(number, pair, width)]
    return lines


def figure_lines(figure: Mapping[str, Any], width: int) -> list[Content]:
    """The share, its interval and the gate's threshold; yellow if the pilot fails it, red if all prompts almost surely would."""
    name = str(figure["name"]).replace("_", " ").removesuffix(" share")
    threshold, share = float(figure["threshold"]), figure["share"]
    gate = Content.styled(f" gate ┃ {figure['bound']} {percent(threshold)}", "$muted")
    if share is None:
        return [join_fitting((Content.styled(name, "bold"), Content.styled("not measured", "$muted"), gate), width)]
    fails = share < threshold if figure["bound"] == "at least" else share > threshold
    style = "$check-failed" if figure["hopeless"] else "$check-warning" if fails else "$pair-ok"
    pieces = (
        Content.styled(f"{percent(share)} {name}", f"bold {style}"),
        Content.styled(f"{figure['successes']} of {figure['n']}", "$foreground"),
        gate,
        Content.styled(f" likely {percent(figure['low'])} to {percent(figure['high'])}", "$muted"),
    )
    return [
        join_fitting(pieces, width),
        bar(share, min(width, MAX_BAR), style=style, marks=(forecast_mark(threshold),)),
    ]


def pair_lines(number: int, pair: Mapping[str, Any], width: int) -> list[Content]:
    """One pair of the pilot. All its texts are untrusted."""
    reasons = ", ".join(str(reason) for reason in pair["reasons"])
    verdict = reasons or (f"usable, {pair['outcome']}" if pair["outcome"] else "usable")
    head = section(f"Pair {number}", one_line(verdict, limit=60).plain, width)
    prompt = one_line(pair["prompt"], "$foreground", 300).truncate(width, ellipsis=True)
    names = text_labels(pair["method"])
    return [head, prompt, *side_by_side(str(pair["base_response"]), str(pair["revised_response"]), width, names)]
