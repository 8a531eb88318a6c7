"""Run a generator for its return value."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

Returned = TypeVar("Returned")


def drain(running: Generator[Any, None, Returned]) -> Returned:
    """Run a generator to its end, discard what it yields, and return its return value."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            result: Returned = end.value
            return result
