"""The evaluation in several processes: each is dealt a task at a time, and what was found is taken in the order of the tasks.

The tasks are those of one process, so what is found is the same (in float32 on the CPU; on other devices to the last bits).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from engine.core.config import Stage3Config
from engine.core.events import Event
from engine.dpo.evaluation.line import Ask, Found, Task
from engine.dpo.training.reference import policy_key
from engine.run.folder import Run
from engine.storage.files import sha256_of_json
from engine.storage.jsonl import loads_allowing_nan
from engine.workers import tasks as worker_tasks
from engine.workers.distribution import FinishedBatch, Row, distribute
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows
from engine.workers.serve import Work
from engine.workers.tasks import TaskResult

KIND = "evaluation"


def key_of_models(config: Stage3Config, stage2_sha256: str, stage3_sha256: str) -> str:
    """A hash of everything that what they find depends on, beside the task."""
    return sha256_of_json([policy_key(config, sha256) for sha256 in (stage2_sha256, stage3_sha256)])


@dataclass(frozen=True)
class AskProcesses:
    """An `Ask`. What an earlier start's processes left in their files is not done again."""

    pool: WorkerPool
    run: Run
    models: str
    """As `key_of_models`."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Event | Found]:
        left = _left(self.run)
        alone = [[{**task, "key": key_of_task(self.models, task)}] for task in tasks]
        for told in distribute(self.pool, alone, lambda task: left.get(task["key"]), lambda batch: batch[0]):
            if isinstance(told, FinishedBatch):
                yield _found(told.rows[0])
            elif not isinstance(told, str):
                yield told


def after_processes(ask: Ask, run: Run, models: str) -> Ask:
    """One process that goes on after several: what they left in their files is not done again."""

    def asked(tasks: Sequence[Task]) -> Iterator[Event | Found]:
        left = _left(run)
        rows = [left.get(key_of_task(models, task)) for task in tasks]
        rest = ask([task for task, row in zip(tasks, rows, strict=True) if row is None])
        for row in rows:
            yield from islice(rest, 1) if row is None else [_found(row)]

    return asked


def _left(run: Run) -> dict[str, Row]:
    """What processes of an earlier start left, by the key of its task."""
    return {
        str(row["key"]): row for row in earlier_rows(run, KIND) if "key" in row and isinstance(row.get("found"), str)
    }


def key_of_task(models: str, task: Task) -> str:
    return sha256_of_json([models, task])


def _found(row: Row) -> Found:
    return list(loads_allowing_nan(row["found"]))


def work_of(do: Callable[[Task], Found], judging: Callable[[], Work]) -> Work:
    """What each of the processes does with a task.

    judging   loads the judge and gives what it does; called when the first comparisons come
    """
    judges: list[Work] = []

    def work(task: worker_tasks.Task) -> Generator[str, None, TaskResult]:
        if "comparisons" in task:
            judges[:] = judges or [judging()]
            return (yield from judges[0](task))
        yield "evaluation"
        # As text, because a broken model's figures may be no numbers, which a row cannot hold.
        return TaskResult([{"key": task["key"], "found": json.dumps(do(task))}])

    return work
