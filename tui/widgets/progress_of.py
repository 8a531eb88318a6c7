"""How far a stage and a run are, from the state alone."""

from __future__ import annotations

from engine.core.stage_table import STAGES
from engine.run.state import RunState, StageState


def share_done(stage: StageState) -> str:
    progress = stage.progress
    if progress is None or not progress.total:
        return ""
    return f"{100 * min(progress.done / progress.total, 1.0):.0f} %"


def seconds_to_go(state: RunState, now: float) -> float | None:
    """Remaining time of the running stage and of the forecast stages after it; None if unknown."""
    current = state.current
    if current is None:
        return None
    here = state.expected_seconds(current.name, now)
    elapsed = current.elapsed(now) or 0.0
    later = [
        seconds
        for name in STAGES[STAGES.index(current.name) + 1 :]
        if state.stages[name].status == "waiting" and (seconds := state.expected_seconds(name, now)) is not None
    ]
    left = max(here - elapsed, 0.0) if here is not None else 0.0
    return left + sum(later) if here is not None or later else None


def seconds_so_far(state: RunState, now: float) -> float:
    """Of work, over all stages; what was reused counts as long as it took."""
    return sum(stage.elapsed(now) or 0.0 for stage in state.stages.values())
