"""Distribute the batches of a long job among workers, except those whose rows an earlier start has left on disk."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from engine.core.events import Event
from engine.storage.lazy import Mapped, take
from engine.workers.pool import WorkerPool
from engine.workers.tasks import Task, TaskResult

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class FinishedBatch(Generic[T]):
    """A batch and the rows made from it, one for each item."""

    batch: Sequence[T]
    rows: Sequence[Row]
    facts: Mapping[str, Any]
    """What the worker reported beside the rows; empty if they are from an earlier start."""


def distribute(
    pool: WorkerPool,
    batches: Sequence[Sequence[T]],
    existing: Callable[[T], Row | None],
    task_of: Callable[[Sequence[T]], Task],
) -> Iterator[str | Event | FinishedBatch[T]]:
    """A FinishedBatch for each batch, in order; between them the steps and events of `WorkerPool.results`. Raises as it does.

    existing   the row that an earlier start made of an item; None if there is none
    """
    unmade = array(
        "Q", (number for number, batch in enumerate(batches) if any(existing(item) is None for item in batch))
    )
    results = pool.results(Mapped(take(batches, unmade), task_of))
    remaining = iter(unmade)
    next_unmade = next(remaining, None)
    for number, batch in enumerate(batches):
        if number != next_unmade:
            yield FinishedBatch(batch, [row for item in batch if (row := existing(item)) is not None], {})
            continue
        result = yield from _next_result(results)
        yield FinishedBatch(batch, result.rows, result.facts)
        next_unmade = next(remaining, None)


def _next_result(results: Iterator[str | Event | TaskResult]) -> Generator[str | Event, None, TaskResult]:
    for item in results:
        if isinstance(item, TaskResult):
            return item
        yield item
    raise AssertionError("every batch has a result")
