"""Evaluation in several processes: each gets one task at a time, and results are collected in the order of the tasks.

The tasks are the same as in one process, and so are the results (in float32 on the CPU; elsewhere except for the last bits).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from engine.core.config import Stage3Config
from engine.core.events import Event
from engine.dpo.evaluation.tasks import Results, RunTasks, Task
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


def policies_key(config: Stage3Config, stage2_sha256: str, stage3_sha256: str) -> str:
    """A hash of everything except the task that results depend on."""
    return sha256_of_json([policy_key(config, sha256) for sha256 in (stage2_sha256, stage3_sha256)])


@dataclass(frozen=True)
class RunTasksInProcesses:
    """A `RunTasks` that reuses the results in the files of an earlier start's processes."""

    pool: WorkerPool
    run: Run
    policies_key: str
    """The result of the function `policies_key`."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Event | Results]:
        known = _earlier_results(self.run)
        batches = [[{**task, "key": task_key(self.policies_key, task)}] for task in tasks]  # of one task each
        for item in distribute(self.pool, batches, lambda task: known.get(task["key"]), lambda batch: batch[0]):
            if isinstance(item, FinishedBatch):
                yield _result(item.rows[0])
            elif not isinstance(item, str):
                yield item


def reusing_results(run_tasks: RunTasks, run: Run, policies_key: str) -> RunTasks:
    """`run_tasks`, but reusing the results in the files of an earlier start's processes."""

    def run_missing(tasks: Sequence[Task]) -> Iterator[Event | Results]:
        known = _earlier_results(run)
        rows = [known.get(task_key(policies_key, task)) for task in tasks]
        new_results = run_tasks([task for task, row in zip(tasks, rows, strict=True) if row is None])
        for row in rows:
            yield from islice(new_results, 1) if row is None else [_result(row)]

    return run_missing


def _earlier_results(run: Run) -> dict[str, Row]:
    """The rows that processes of an earlier start wrote, by task key."""
    return {
        str(row["key"]): row for row in earlier_rows(run, KIND) if "key" in row and isinstance(row.get("found"), str)
    }


def task_key(policies_key: str, task: Task) -> str:
    return sha256_of_json([policies_key, task])


def _result(row: Row) -> Results:
    return list(loads_allowing_nan(row["found"]))


def task_handler(run_task: Callable[[Task], Results], load_judge: Callable[[], Work]) -> Work:
    """What each process does with a task.

    load_judge   loads the judge and returns its task handler; called for the first task with comparisons
    """
    judges: list[Work] = []

    def work(task: worker_tasks.Task) -> Generator[str, None, TaskResult]:
        if "comparisons" in task:
            judges[:] = judges or [load_judge()]
            return (yield from judges[0](task))
        yield "evaluation"
        # As text, because a broken model may give NaN, which a row cannot contain.
        return TaskResult([{"key": task["key"], "found": json.dumps(run_task(task))}])

    return work
