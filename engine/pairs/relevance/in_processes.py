"""Measure relevance in several worker processes. Each takes one batch at a time; results arrive in the order of the batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.core.events import Event
from engine.core.wording import plural
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
    """A `MeasureBatches` that reuses the measures in the files of an earlier start's workers."""

    pool: WorkerPool
    run: Run
    model: str
    """The name of the base model that each worker has loaded."""

    def __call__(self, batches: Sequence[Sequence[Pair]]) -> Iterator[Event | MeasuredBatch]:
        earlier = self._earlier_rows()

        def row_of(pair: Pair) -> dict[str, Any] | None:
            return earlier.get(key_of_reply(pair.messages, pair.revised_response)) if earlier else None

        for item in distribute(self.pool, batches, row_of, _task):
            if isinstance(item, FinishedBatch):
                yield len(item.batch), [MeasuredReply(**row) for row in item.rows]
            elif not isinstance(item, str):
                yield item

    def _earlier_rows(self) -> dict[str, dict[str, Any]]:
        rows = [(measured_reply(row), row) for row in earlier_rows(self.run, KIND)]
        return {each.key: row for each, row in rows if each is not None and each.model == self.model}


def _task(pairs: Sequence[Pair]) -> Task:
    fields = [{"id": pair.id, "messages": pair.messages, "revised_response": pair.revised_response} for pair in pairs]
    return {"pairs": fields}


def task_handler(meter: RelevanceMeter, model: str) -> Work:
    """The function with which each worker handles a task."""

    def work(task: Task) -> Generator[str, None, TaskResult]:
        pairs = [Pair(**each, prompt="", base_response="") for each in task["pairs"]]
        yield plural(len(pairs), "revision")
        return TaskResult([asdict(reply) for reply in measured_batch(meter, model, pairs)])

    return work
