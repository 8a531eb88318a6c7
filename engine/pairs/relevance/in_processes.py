"""Measure relevance in several processes: each is dealt a batch at a time; the measures are taken in the order of the batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.core.events import Event
from engine.pairs.data.record import Pair
from engine.pairs.relevance.cache import MeasuredReply, key_of_reply, measured_reply
from engine.pairs.relevance.measure import RelevanceMeter
from engine.pairs.relevance.pairs import MeasuredBatch, measured_batch
from engine.run.folder import Run
from engine.workers.distribution import FinishedBatch, distribute
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows
from engine.workers.serve import Work
from engine.workers.tasks import Task, TaskResult

KIND = "relevance"


@dataclass(frozen=True)
class MeasureInProcesses:
    """A `MeasureBatches`. What an earlier start's processes left in their files is not measured again."""

    pool: WorkerPool
    run: Run
    model: str
    """The name of the base model that each of them has loaded."""

    def __call__(self, batches: Sequence[Sequence[Pair]]) -> Iterator[Event | MeasuredBatch]:
        left = self._earlier_rows()

        def row_of(pair: Pair) -> dict[str, Any] | None:
            return left.get(key_of_reply(pair.messages, pair.revised_response)) if left else None

        for told in distribute(self.pool, batches, row_of, _task):
            if isinstance(told, FinishedBatch):
                yield len(told.batch), [MeasuredReply(**row) for row in told.rows]
            elif not isinstance(told, str):
                yield told

    def _earlier_rows(self) -> dict[str, dict[str, Any]]:
        rows = [(measured_reply(row), row) for row in earlier_rows(self.run, KIND)]
        return {each.key: row for each, row in rows if each is not None and each.model == self.model}


def _task(pairs: Sequence[Pair]) -> Task:
    read = [{"id": pair.id, "messages": pair.messages, "revised_response": pair.revised_response} for pair in pairs]
    return {"pairs": read}


def task_handler(meter: RelevanceMeter, model: str) -> Work:
    """What each of the processes does with a task."""

    def work(task: Task) -> Generator[str, None, TaskResult]:
        pairs = [Pair(**each, prompt="", base_response="") for each in task["pairs"]]
        yield f"{len(pairs)} revisions"
        return TaskResult([asdict(reply) for reply in measured_batch(meter, model, pairs)])

    return work
