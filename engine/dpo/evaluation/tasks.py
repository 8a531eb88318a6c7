"""The evaluation's tasks for the two policies, in a queue that one process or several work through."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.events import Event
from engine.pairs.judges.scores import ScoreBatches

Task = Mapping[str, Any]
"""A task for `engine.dpo.evaluation.policies`, as a JSON object."""
Results = list[Any]
"""The results of a task, one for each of its items."""
RunTasks = Callable[[Sequence[Task]], Iterator[Event | Results]]
"""Runs tasks and yields their results in order. Raises Stopped between two tasks."""


@dataclass(frozen=True)
class EvaluationBackend:
    """What runs the tasks, and what judges."""

    run_tasks: RunTasks
    score: ScoreBatches | None = None
    """Scores with the judge that passed its exam; None if this process has to load that judge."""


class TaskQueue:
    """Tasks of several measurements, all submitted before the first result is collected, so that no process is ever idle
    between two measurements. Each measurement must collect its own results, in the order of submission.
    """

    def __init__(self, run_tasks: RunTasks) -> None:
        self._run_tasks = run_tasks
        self._tasks: list[Task] = []
        self._results: Iterator[Event | Results] | None = None

    def submit(self, tasks: Sequence[Task]) -> None:
        assert self._results is None, "a task that is submitted now would never run"
        self._tasks += tasks

    def next_result(self) -> Generator[Event, None, Results]:
        """The result of the next task. Raises as `RunTasks` does."""
        if self._results is None:
            self._results = self._run_tasks(self._tasks)
        for item in self._results:
            if not isinstance(item, Event):
                return item
            yield item
        raise AssertionError("each result is collected once")
