"""Converts pairs of any form to lines of our `pairs.jsonl`, for import and for the pair browser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import NO_PAIR, NOT_A_PAIR
from engine.storage.jsonl import BadLine, dumps


def native_row(pair: Pair) -> dict[str, Any]:
    return asdict(pair)


def native_lines(pairs: Iterable[tuple[int, Pair | BadLine]]) -> Iterator[str]:
    """One line per row, newline included. Bad rows carry their reason and blank lines stay, so line numbers match the file."""
    line = 0
    for number, read in pairs:
        yield "\n" * (number - line)
        row = (
            {"prompt": "", NOT_A_PAIR: read.reason.removeprefix(NO_PAIR)}
            if isinstance(read, BadLine)
            else native_row(read)
        )
        yield dumps(row) + "\n"
        line = number + 1
