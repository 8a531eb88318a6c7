"""The interface of a stage module.

A stage is a module of this package with

    def run(context) -> Generator[Event, None, StageEnd]

and, if its result depends on more than its options and the results of earlier stages (`engine.core.stage_table`),

    def evidence(context) -> dict | None       what else its result depends on, as plain data; None: never reused
    READ_AS: dict[str, Callable[[config], …]]  options compared by something other than their value: a file by its hash

`run` yields events, checks `context.stop` wherever everything is on disk, and raises a Stage3Error if it cannot continue.
The caller handles logging, the journal, resuming and drawing, and stamps the events with the stage's name.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from engine.core.events import Event, Outcome
from engine.run.context import Context
from engine.run.results import StageResult

__all__ = ["Context", "Stage", "StageEnd", "StageRun"]


@dataclass(frozen=True)
class StageEnd:
    summary: str
    """One line for the list of stages and the report."""
    result: StageResult
    outcome: Outcome = "done"
    """`done`, or `skipped` if nothing was needed."""

    @property
    def facts(self) -> dict[str, Any]:
        """The result, as in `run.json` and the journal."""
        return self.result.as_dict()


StageRun = Generator[Event, None, StageEnd]


class Stage(Protocol):
    """A stage module."""

    def run(self, context: Context) -> StageRun: ...
