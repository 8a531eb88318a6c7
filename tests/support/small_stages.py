"""Ten small stages that write real files to a real run folder: the pipeline without the computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.core.events import Event, Message, StageFinished
from engine.core.stage_table import STAGE, STAGES
from engine.pipeline import loop
from engine.run.context import Context
from engine.run.results import StageResult
from engine.stages.base import StageEnd


@dataclass(frozen=True)
class Made(StageResult):
    n: int


@dataclass
class SmallStage:
    """Writes one file, depends on one value and on the previous stage's result, and fails on request."""

    name: str
    depends: Any = 1
    """None: never reused."""
    failure: BaseException | None = None
    ran: int = 0
    result: int = 1
    """The value it passes to the next stage."""
    outcome: str = "done"

    def evidence(self, context: Context) -> dict[str, Any] | None:
        return None if self.depends is None else {"value": self.depends}

    def run(self, context: Context) -> Iterator[Event]:
        self.ran += 1
        (context.run / f"{self.name}.txt").write_text(f"made {self.ran}")
        yield Message("info", f"{self.name} at work")
        if self.failure is not None:
            raise self.failure
        return StageEnd(f"{self.name} fine", Made(self.result), self.outcome)  # type: ignore[arg-type]


def small_stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, SmallStage]:
    """Replace the real stages; each depends on the previous one and writes a file."""
    before = None
    for name in STAGES:
        inputs = {} if before is None else {f"{before}.n": f"{before}.n"}
        small = replace(
            STAGE[name],
            inputs=inputs,
            outputs=(f"{name}.txt",),
            part_outputs={},
            always_runs=False,
            keeps_records=False,
        )
        monkeypatch.setitem(STAGE, name, small)
        before = name
    made = {name: SmallStage(name) for name in STAGES}
    monkeypatch.setattr(loop, "load_stage", made.__getitem__)
    return made


def run_all(context: Context, **arguments: Any) -> tuple[list[Event], Any]:
    """The pipeline's events and exit code."""
    events, generator = [], loop.run_pipeline(context, **arguments)
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def finished_stages(events: list[Event]) -> dict[str, StageFinished]:
    return {event.stage: event for event in events if isinstance(event, StageFinished)}
