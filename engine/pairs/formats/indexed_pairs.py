"""Some pairs of a run's file, by their lines: each is read from the disk when it is asked for, so that a set of a million costs no
more memory than where its lines begin.
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
    """The pairs of the lines `lines` (from 0, ascending) of a file that nobody writes to meanwhile; 16 bytes each.

    finish   what is done to each pair that was read: decisions, scores, measures

    Reading raises DamagedState for a line that is no pair (any more), and OSError.
    """

    def __init__(self, path: Path, lines: array[int], finish: Callable[[Pair], Pair]) -> None:
        self._path, self._lines, self._finish = path, lines, finish
        self._records = JsonLines(path, lines)

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> Pair:
        pair = pair_of(self._lines[index], self._records[index])
        if isinstance(pair, BadLine):
            raise damaged_line(self._path, pair, "It was a pair a moment ago: something else changed the file.")
        return self._finish(pair)
