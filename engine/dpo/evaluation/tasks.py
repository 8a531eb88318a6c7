"""What the evaluation asks of the two models: tasks in a line, which one process or several do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.events import Event
from engine.pairs.judges.scores import ScoreBatches

Task = Mapping[str, Any]
"""As `engine.dpo.evaluation.policies` reads it. It can be sent as JSON."""
TaskResult = list[Any]
"""What a task came to, an item for each of its own."""
RunTasks = Callable[[Sequence[Task]], Iterator[Event | TaskResult]]
"""Does the tasks, and gives what was found, in their order. Raises Stopped between two of them."""


@dataclass(frozen=True)
class EvaluationBackend:
    """Who answers, reads and judges."""

    ask: RunTasks
    score: ScoreBatches | None = None
    """With the judge that passed; None if this process has to load it."""


class TaskQueue:
    """Tasks of several subjects. All are put in before the first is collected, so that no process waits for the end of a subject.

    Each subject collects its own, in the order in which the subjects put theirs in.
    """

    def __init__(self, ask: RunTasks) -> None:
        self._ask = ask
        self._tasks: list[Task] = []
        self._told: Iterator[Event | TaskResult] | None = None

    def submit(self, tasks: Sequence[Task]) -> None:
        assert self._told is None, "what is put in now would never be done"
        self._tasks += tasks

    def next_result(self) -> Generator[Event, None, TaskResult]:
        """What was found of the next task. Raises as `RunTasks` does."""
        if self._told is None:
            self._told = self._ask(self._tasks)
        for told in self._told:
            if not isinstance(told, Event):
                return told
            yield told
        raise AssertionError("each task is collected once")
