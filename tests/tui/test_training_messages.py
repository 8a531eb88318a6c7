"""The messages beside the charts of a training."""

from __future__ import annotations

from engine.core.events import Message, TrainStep
from engine.run.state import RunState
from tui.screens.training import worth_showing

LOADING = Message("info", "2 processes train together.", "training")
SLOW = Message("warning", "The loss rises.", "training")
ELSEWHERE = Message("info", "Loading the judge.", "quality")
STEP = TrainStep(1, 54, 0.69, 0.0, 0.0, 0.0, 0.5, 1e-4, 1.0, 100.0)


def state_after(*events: object) -> RunState:
    state = RunState()
    for event in events:
        state = state.apply(event, 0.0)  # type: ignore[arg-type]
    return state


def test_progress_messages_are_shown_before_the_first_step_and_then_only_warnings():
    loading = state_after(ELSEWHERE, LOADING, SLOW)
    assert worth_showing(loading, "training") == (LOADING, SLOW)
    assert worth_showing(state_after(ELSEWHERE, LOADING, SLOW, STEP), "training") == (SLOW,)
