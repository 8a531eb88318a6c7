"""Pairs of any form as lines of our own `pairs.jsonl`: what a run imports, and what the browser shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import NO_PAIR, NOT_A_PAIR
from engine.storage.jsonl import BadLine, dumps


def own_row(pair: Pair) -> dict[str, Any]:
    return asdict(pair)


def own_lines(pairs: Iterable[tuple[int, Pair | BadLine]]) -> Iterator[str]:
    """A line a row, with its newline; a row that is no pair says why, and a blank line stays one: numbers are the file's."""
    line = 0
    for number, read in pairs:
        yield "\n" * (number - line)
        row = (
            {"prompt": "", NOT_A_PAIR: read.reason.removeprefix(NO_PAIR)}
            if isinstance(read, BadLine)
            else own_row(read)
        )
        yield dumps(row) + "\n"
        line = number + 1
