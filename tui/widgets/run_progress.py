"""The progress of a stage and of the run, as functions of the state."""

from __future__ import annotations

from engine.core.stage_table import STAGES
from engine.run.state import RunState, StageState


def percent_done(stage: StageState) -> str:
    progress = stage.progress
    if progress is None or not progress.total:
        return ""
    return f"{100 * min(progress.done / progress.total, 1.0):.0f} %"


def seconds_remaining(state: RunState, now: float) -> float | None:
    """The remaining time of the running stage and of the later ones with a forecast; None if unknown."""
    current = state.current
    if current is None:
        return None
    expected = state.expected_seconds(current.name, now)
    elapsed = current.elapsed(now) or 0.0
    later = [
        seconds
        for name in STAGES[STAGES.index(current.name) + 1 :]
        if state.stages[name].status == "waiting" and (seconds := state.expected_seconds(name, now)) is not None
    ]
    left = max(expected - elapsed, 0.0) if expected is not None else 0.0
    return left + sum(later) if expected is not None or later else None


def seconds_elapsed(state: RunState, now: float) -> float:
    """The time spent on all stages; a reused stage counts with the time it took originally."""
    return sum(stage.elapsed(now) or 0.0 for stage in state.stages.values())
