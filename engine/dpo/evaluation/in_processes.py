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
from engine.dpo.evaluation.tasks import RunTasks, Task, TaskResult
from engine.dpo.training.reference import policy_key
from engine.run.folder import Run
from engine.storage.files import sha256_of_json
from engine.storage.jsonl import foreign_loads
from engine.workers import serve
from engine.workers.pool import WorkerPool
from engine.workers.rows import left_rows
from engine.workers.serve import Made, Work
from engine.workers.shares import Row, Share, shared_out

KIND = "evaluation"


def policies_key(config: Stage3Config, stage2_sha256: str, stage3_sha256: str) -> str:
    """A hash of everything that what they find depends on, beside the task."""
    return sha256_of_json([policy_key(config, sha256) for sha256 in (stage2_sha256, stage3_sha256)])


@dataclass(frozen=True)
class RunTasksInProcesses:
    """An `RunTasks`. What an earlier start's processes left in their files is not done again."""

    pool: WorkerPool
    run: Run
    models: str
    """As `policies_key`."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Event | TaskResult]:
        left = _left(self.run)
        alone = [[{**task, "key": task_key(self.models, task)}] for task in tasks]
        for told in shared_out(self.pool, alone, lambda task: left.get(task["key"]), lambda batch: batch[0]):
            if isinstance(told, Share):
                yield _found(told.rows[0])
            elif not isinstance(told, str):
                yield told


def reusing_results(ask: RunTasks, run: Run, models: str) -> RunTasks:
    """One process that goes on after several: what they left in their files is not done again."""

    def asked(tasks: Sequence[Task]) -> Iterator[Event | TaskResult]:
        left = _left(run)
        rows = [left.get(task_key(models, task)) for task in tasks]
        rest = ask([task for task, row in zip(tasks, rows, strict=True) if row is None])
        for row in rows:
            yield from islice(rest, 1) if row is None else [_found(row)]

    return asked


def _left(run: Run) -> dict[str, Row]:
    """What processes of an earlier start left, by the key of its task."""
    return {str(row["key"]): row for row in left_rows(run, KIND) if "key" in row and isinstance(row.get("found"), str)}


def task_key(models: str, task: Task) -> str:
    return sha256_of_json([models, task])


def _found(row: Row) -> TaskResult:
    return list(foreign_loads(row["found"]))


def work_of(run_task: Callable[[Task], TaskResult], judging: Callable[[], Work]) -> Work:
    """What each of the processes does with a task.

    judging   loads the judge and gives what it does; called when the first comparisons come
    """
    judges: list[Work] = []

    def work(task: serve.Task) -> Generator[str, None, Made]:
        if "comparisons" in task:
            judges[:] = judges or [judging()]
            return (yield from judges[0](task))
        yield "evaluation"
        # As text, because a broken model's figures may be no numbers, which a row cannot hold.
        return Made([{"key": task["key"], "found": json.dumps(run_task(task))}])

    return work
