"""Run a generator for what it returns."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

Returned = TypeVar("Returned")


def drain(running: Generator[Any, None, Returned]) -> Returned:
    """Run to the end, ignore what it yields, and return what it returns."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            result: Returned = end.value
            return result
