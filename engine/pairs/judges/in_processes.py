"""Score comparisons in several worker processes. Each takes one batch at a time; the scores arrive in the order of the batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.events import Event
from engine.core.wording import plural
from engine.pairs.judges.base import Comparison, Judge
from engine.pairs.judges.scores import (
    ScoredBatch,
    batches_of,
    key_of,
    score_of_row,
    score_row,
    scored_batch,
    scores_of,
)
from engine.run.folder import Run
from engine.workers.distribution import FinishedBatch, distribute
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows
from engine.workers.serve import Work
from engine.workers.tasks import Task, TaskResult

KIND = "scores"


@dataclass(frozen=True)
class ScoreInProcesses:
    """A `ScoreBatches` that reuses the scores in the files of an earlier start's workers."""

    pool: WorkerPool
    run: Run
    judge: str
    """The name of the judge that each worker has loaded."""
    kind: str = KIND
    """The kind in the names of the workers' files."""

    def __call__(self, comparisons: Sequence[Comparison]) -> Iterator[Event | ScoredBatch]:
        earlier = self._earlier_rows()

        def row_of(comparison: Comparison) -> dict[str, Any] | None:
            return earlier.get(key_of(comparison)) if earlier else None

        for item in distribute(self.pool, batches_of(comparisons), row_of, _task):
            if isinstance(item, FinishedBatch):
                yield [(comparison, scores_of(row)) for comparison, row in zip(item.batch, item.rows, strict=True)]
            elif not isinstance(item, str):
                yield item

    def _earlier_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = [(score_of_row(row), row) for row in earlier_rows(self.run, self.kind)]
        return {each.key: row for each, row in rows if each is not None and each.judge == self.judge}


def _task(comparisons: Sequence[Comparison]) -> Task:
    return {"comparisons": [vars(comparison) for comparison in comparisons]}


def task_handler(judge: Judge) -> Work:
    """The function with which each worker handles a task."""

    def work(task: Task) -> Generator[str, None, TaskResult]:
        comparisons = [Comparison(**each) for each in task["comparisons"]]
        yield plural(len(comparisons), "comparison")
        return TaskResult([score_row(judge.name, *scored) for scored in scored_batch(judge, comparisons)])

    return work
