"""Deal batches of a long job out to workers; what an earlier start's workers left in their files is not made again."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from engine.core.events import Event
from engine.storage.lazy import Mapped, take
from engine.workers.pool import Answer, Task, WorkerPool

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Share(Generic[T]):
    """A batch with the rows that were made of it, one for each item."""

    batch: Sequence[T]
    rows: Sequence[Row]
    facts: Mapping[str, Any]
    """What the worker told beside them; empty for what was left."""


def shared_out(
    pool: WorkerPool,
    batches: Sequence[Sequence[T]],
    left: Callable[[T], Row | None],
    task_of: Callable[[Sequence[T]], Task],
) -> Iterator[str | Event | Share[T]]:
    """A Share for each batch, in order, and what `WorkerPool.answers` tells between them. Raises as it does.

    left   the row of an item that is in a file already
    """
    unmade = array("Q", (number for number, batch in enumerate(batches) if any(left(item) is None for item in batch)))
    answers = pool.answers(Mapped(take(batches, unmade), task_of))
    coming = iter(unmade)
    next_unmade = next(coming, None)
    for number, batch in enumerate(batches):
        if number != next_unmade:
            yield Share(batch, [row for item in batch if (row := left(item)) is not None], {})
            continue
        answer = yield from _next_answer(answers)
        yield Share(batch, answer.rows, answer.facts)
        next_unmade = next(coming, None)


def _next_answer(answers: Iterator[str | Event | Answer]) -> Generator[str | Event, None, Answer]:
    for told in answers:
        if isinstance(told, Answer):
            return told
        yield told
    raise AssertionError("every batch has an answer")
