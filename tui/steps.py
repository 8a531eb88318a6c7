"""How far the training's steps are, as progress: the engine tells each step, and this tells how fast they come."""

from __future__ import annotations

from dataclasses import replace

from engine.events import Progress
from engine.state import RunState

TRAINING = "training"


class StepProgress:
    """Adds the progress of the optimizer's steps to a state, with the rate at which they were seen to come."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        """The first step that was seen, and when."""
        self._made: tuple[RunState, RunState] | None = None

    def added_to(self, state: RunState) -> RunState:
        """`state` while steps are being done, their progress in place of what the stage told last; else as it is."""
        if self._made is not None and self._made[0] is state:
            return self._made[1]
        stage = state.stages[TRAINING]
        last = state.train_steps[-1] if state.train_steps else None
        told = stage.progress
        # The stage tells its own progress before the steps (the reference) and after them (the answers).
        another_part = told is not None and told.done < told.total
        if stage.status != "running" or last is None or last.step >= last.total_steps or another_part:
            self._first = None
            return state
        if self._first is None or self._first[0] > last.step:
            self._first = (last.step, state.last_time)
        rate, left = self._rate(last.step, last.total_steps, state.last_time)
        progress = Progress(TRAINING, last.step, last.total_steps, "steps", rate, left)
        with_steps = replace(state, stages={**state.stages, TRAINING: replace(stage, progress=progress)})
        self._made = (state, with_steps)
        return with_steps

    def _rate(self, step: int, total: int, now: float) -> tuple[float | None, float | None]:
        first, since = self._first or (step, now)
        if step <= first or now <= since:
            return None, None
        rate = (step - first) / (now - since)
        return rate, (total - step) / rate
