"""Selected pairs of a run's file, by line number. Each is read from disk on access, so a set of a million pairs takes only the
memory for its line offsets.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import pair_of
from engine.pairs.formats.run_pairs import damaged_line
from engine.storage.jsonl import BadLine
from engine.storage.lazy import JsonLines, LazySequence


class IndexedPairs(LazySequence[Pair]):
    """The pairs on `lines` (from 0, ascending) of a file that must not change meanwhile. Takes 16 bytes per pair.

    finish   applied to each pair after reading: adds decisions, scores, measures

    Access raises OSError, and DamagedState if the line is not a pair (any more).
    """

    def __init__(self, path: Path, lines: array[int], finish: Callable[[Pair], Pair]) -> None:
        self._path, self._lines, self._finish = path, lines, finish
        self._records = JsonLines(path, lines)

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> Pair:
        pair = pair_of(self._lines[index], self._records[index])
        if isinstance(pair, BadLine):
            raise damaged_line(self._path, pair, "It was a pair before: another program changed the file.")
        return self._finish(pair)
