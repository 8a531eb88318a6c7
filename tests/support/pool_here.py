"""A worker pool in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from engine.storage.jsonl import dumps
from engine.workers.serve import Work
from engine.workers.tasks import Task, TaskResult


class PoolHere:
    """A pool whose only worker is this process. Tasks and results pass through JSON, as through a pipe."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def results(self, tasks: Sequence[Task]) -> Iterator[str | TaskResult]:
        for task in tasks:
            steps = self.work(json.loads(dumps(task)))
            try:
                while True:
                    yield next(steps)
            except StopIteration as end:
                yield TaskResult([json.loads(dumps(row)) for row in end.value.rows], end.value.facts)

    def rows(self, tasks: Sequence[Task]) -> list[Any]:
        """All rows of their results."""
        return [row for result in self.results(tasks) if isinstance(result, TaskResult) for row in result.rows]
