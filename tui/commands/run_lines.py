"""The lines that `--auto` prints about a run: one per stage, the forecast before the long ones, and the outcome.

Pure functions of the events and their fold; `tui.commands.printers` writes the lines to a terminal or pipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Event,
    PairFailed,
    PairMade,
    Progress,
    RunFinished,
    StageFinished,
    StageStarted,
    TrainStep,
    TrialStep,
)
from engine.dpo.planning.forecast import WorkClock
from engine.run.journal import Entry
from engine.run.state import RunState
from engine.security.sanitize import visible_line
from tui.commands.event_lines import GLYPH, duration, event_line, progress_text, stage_number, step_text
from tui.server_summary import servers_summary

LONG_STAGES: dict[str, tuple[type[Event], ...]] = {"pairs": (PairMade, PairFailed), "training": (TrainStep, EvalDone)}
"""The stages that preflight forecasts, with the events that count as their work."""
STEADY = (Progress, TrainStep, TrialStep)
"""Events that arrive many times a minute."""
LINE_SECONDS, LINE_SHARE, SILENT_SECONDS = 10.0, 0.1, 600.0
"""A progress line is printed at least ten seconds after the last one, if another tenth is done or ten minutes have passed."""
RESULT_STAGE = "packaging"
"""Its checks hold the next steps (the scp command), so they are always printed."""


class Line(NamedTuple):
    text: str
    event: Event | None = None
    """The event behind the line, for its colour."""


class RunLines:
    """Turns events into lines; minor events give none.

    verbose   also print every check and checkpoint, and the start of every stage
    """

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._clocks = {stage: WorkClock(stage, work) for stage, work in LONG_STAGES.items()}
        self._began: float | None = None

    def remember(self, entry: Entry) -> None:
        """Take an event of an earlier process into account: nothing is printed, but its time counts."""
        for clock in self._clocks.values():
            clock.add(entry)

    def lines(self, entry: Entry, state: RunState) -> list[Line]:
        self.remember(entry)
        self._began = entry.time if self._began is None else self._began
        event = entry.event
        if isinstance(event, STEADY) or (not self._verbose and _is_detail(event)):
            return []
        match event:
            case StageStarted(stage=stage):
                return self._stage_begins(stage, event_line(entry), event, state)
            case StageFinished(stage=stage, reused=False, outcome="done" | "skipped") if stage in state.stages:
                return self._stage_ends(event, state, entry.time)
            case RunFinished(exit_code=0):
                return self._run_ends(state, entry.time)
        line = event_line(entry)
        return [Line(line, event)] if line else []

    def _stage_begins(self, stage: str, head: str, event: Event, state: RunState) -> list[Line]:
        shown = [Line(head, event)] if self._verbose or stage in LONG_STAGES else []
        forecast = forecast_line(state, stage)
        return [*shown, Line(f"    {forecast}")] if forecast else shown

    def _stage_ends(self, event: StageFinished, state: RunState, now: float) -> list[Line]:
        head = f"{GLYPH[event.outcome]} {stage_number(event.stage)} {event.stage} {event.outcome}"
        took = duration(state.stages[event.stage].elapsed(now) or 0)
        lines = [Line(f"{head} in {took}: {visible_line(event.summary)}", event)]
        actual = actual_times(
            state, {event.stage: self._clocks[event.stage].seconds} if event.stage in self._clocks else {}
        )
        return [*lines, *(Line(f"    {text}") for text in actual)]

    def _run_ends(self, state: RunState, now: float) -> list[Line]:
        actual = actual_times(state, {stage: clock.seconds for stage, clock in self._clocks.items()})
        return [Line("; ".join([f"whole run in {duration(now - (self._began or now))}", *actual]))]


def _is_detail(event: Event) -> bool:
    if isinstance(event, Check):
        return event.status in ("ok", "skipped") and event.stage != RESULT_STAGE
    return isinstance(event, CheckpointSaved)


def forecast_line(state: RunState, stage: str) -> str:
    """Preflight's forecast at the start of a long stage: for it, those after it, and in total; empty without one."""
    forecast = state.forecast.seconds if state.forecast is not None else {}
    ahead = list(LONG_STAGES)[list(LONG_STAGES).index(stage) :] if stage in LONG_STAGES else []
    known = {name: forecast[name] for name in ahead if forecast.get(name)}
    if not known:
        return ""
    parts = [f"{name} about {duration(seconds)}" for name, seconds in known.items()]
    if len(known) > 1:
        parts.append(f"together about {duration(sum(known.values()))}")
    return f"forecast: {', '.join(parts)}"


def actual_times(state: RunState, measured: Mapping[str, float]) -> list[str]:
    """Forecast and actual time of each long stage, over all processes that worked on it."""
    forecast = state.forecast.seconds if state.forecast is not None else {}
    return [
        f"{name} took {duration(seconds)} of work (forecast {duration(forecast[name])})"
        for name, seconds in measured.items()
        if seconds > 0 and forecast.get(name)
    ]


class ProgressThrottle:
    """Rate limit for progress lines."""

    def __init__(self) -> None:
        self._last: tuple[str, float, float] | None = None
        """What progressed, when, and the share that was done."""

    def line(self, entry: Entry, state: RunState) -> str:
        """The line of a progress event; empty if it is too soon for another."""
        what, unit, done, text = _progress(entry.event, state)
        if not what or self._too_soon(f"{what} {unit}", entry.time, done):
            return ""
        return f"    {what} {done:4.0%}  {text}"

    def _too_soon(self, what: str, now: float, done: float) -> bool:
        if self._last is not None:
            before, when, share = self._last
            is_due = what != before or done - share >= LINE_SHARE or now - when >= SILENT_SECONDS
            if now - when < LINE_SECONDS or not is_due:
                return True
        self._last = (what, now, done)
        return False


def _progress(event: Event, state: RunState) -> tuple[str, str, float, str]:
    """What progresses, in which unit, the share done, and the figures."""
    match event:
        case Progress(stage=stage, done=done, total=total) if total:
            figures = "  ".join(filter(None, (progress_text(event), servers_summary(state.servers))))
            return stage, event.unit, done / total, figures
        case TrainStep(step=step, total_steps=total) if total:
            left = state.stages["training"].progress
            ahead = f"  {duration(left.seconds_left)} left" if left is not None and left.seconds_left else ""
            return "training", "steps", step / total, step_text(event) + ahead
        case TrialStep(trial=trial, step=step, total_steps=total, loss=loss, margin=margin) if total:
            figures = f"step {step}/{total}  loss {loss:.4f}  margin {margin:+.4f}"
            return f"trial {visible_line(trial)}", "steps", step / total, figures
    return "", "", 0.0, ""
