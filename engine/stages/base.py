"""What every stage file has, and what it is given.

A stage is a module of this package with

    def depends_on(context) -> dict | None     what its result depends on, as plain data; None: never reused
    def run(context) -> Generator[Event, None, StageResult]
    OUTPUTS: tuple[str, ...]                   its files in the run folder, put aside before they are made anew

`run` yields events, checks `context.stop` where everything is on disk, and raises a Stage3Error when it cannot go on.
Logging, journal, resume and drawing are the caller's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.core.events import Event, Outcome
from engine.run.context import Context

__all__ = ["Context", "Stage", "StageResult", "StageRun"]


@dataclass(frozen=True)
class StageResult:
    summary: str
    """One line for the rail and the report."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for later stages and `run.json`."""
    outcome: Outcome = "done"
    """`done`, or `skipped` where there was nothing to do."""


StageRun = Generator[Event, None, StageResult]


class Stage(Protocol):
    """The shape of a stage module."""

    OUTPUTS: tuple[str, ...]

    def depends_on(self, context: Context) -> dict[str, Any] | None: ...

    def run(self, context: Context) -> StageRun: ...
