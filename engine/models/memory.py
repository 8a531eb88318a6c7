"""Batches that are halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_halves(work: Callable[[Sequence[int]], list[T]], rows: Sequence[int], free: Callable[[], None]) -> list[T]:
    """`work` on all rows at once, or on halves of them where memory runs out. Raises the error for a single row.

    The error is let go of before the retry: its traceback holds the tensors that filled the memory.
    """
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or ("out of memory" not in str(error).lower() and not isinstance(error, MemoryError)):
            raise
    free()
    middle = len(rows) // 2
    return in_halves(work, rows[:middle], free) + in_halves(work, rows[middle:], free)
