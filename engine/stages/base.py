"""What every stage module has, and what it is given.

A stage is a module of this package with

    def run(context) -> Generator[Event, None, StageEnd]

and, where its result depends on more than its options and the results of earlier stages (`engine.core.stage_table`),

    def evidence(context) -> dict | None       more that its result depends on, as plain data; None: never reused
    READ_AS: dict[str, Callable[[config], …]]  options whose value is not what counts: a file's content, a batch as a whole

`run` yields events, checks `context.stop` where everything is on disk, and raises a Stage3Error when it cannot go on.
Logging, journal, resume and drawing are the caller's; so is the stage's name on its events.
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
    """One line for the rail and the report."""
    result: StageResult
    outcome: Outcome = "done"
    """`done`, or `skipped` where there was nothing to do."""

    @property
    def facts(self) -> dict[str, Any]:
        """The result as `run.json` and the journal keep it."""
        return self.result.as_dict()


StageRun = Generator[Event, None, StageEnd]


class Stage(Protocol):
    """The shape of a stage module."""

    def run(self, context: Context) -> StageRun: ...
