"""Score comparisons in several processes: each is dealt a batch at a time, and the scores are taken in the order of the batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.events import Event
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
    """A `ScoreBatches`. What an earlier start's processes left in their files is not scored again."""

    pool: WorkerPool
    run: Run
    judge: str
    """The name of the judge that each of them has loaded."""
    kind: str = KIND
    """Of the files of these processes."""

    def __call__(self, comparisons: Sequence[Comparison]) -> Iterator[Event | ScoredBatch]:
        left = self._earlier_rows()

        def row_of(comparison: Comparison) -> dict[str, Any] | None:
            return left.get(key_of(comparison)) if left else None

        for told in distribute(self.pool, batches_of(comparisons), row_of, _task):
            if isinstance(told, FinishedBatch):
                yield [(each, scores_of(row)) for each, row in zip(told.batch, told.rows, strict=True)]
            elif not isinstance(told, str):
                yield told

    def _earlier_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = [(score_of_row(row), row) for row in earlier_rows(self.run, self.kind)]
        return {each.key: row for each, row in rows if each is not None and each.judge == self.judge}


def _task(comparisons: Sequence[Comparison]) -> Task:
    return {"comparisons": [vars(comparison) for comparison in comparisons]}


def task_handler(judge: Judge) -> Work:
    """What each of the processes does with a task."""

    def work(task: Task) -> Generator[str, None, TaskResult]:
        comparisons = [Comparison(**each) for each in task["comparisons"]]
        yield f"{len(comparisons)} comparisons"
        return TaskResult([score_row(judge.name, *scored) for scored in scored_batch(judge, comparisons)])

    return work
