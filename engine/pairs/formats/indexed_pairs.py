"""Some pairs of a run's file, by their lines: each is read from the disk when it is asked for, so that a set of a million costs no
more memory than where its lines begin.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

from engine.core.errors import DamagedState
from engine.core.reading import open_file
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import pair_of
from engine.pairs.formats.run_pairs import damaged_line
from engine.storage.jsonl import BadLine, parsed_line

Source = TypeVar("Source")
Item = TypeVar("Item")


class IndexedPairs(Sequence[Pair]):
    """The pairs of the lines `lines` (from 0, ascending) of a file that nobody writes to meanwhile; 16 bytes each.

    finish   what is done to each pair that was read: decisions, scores, measures

    Reading raises DamagedState for a line that is no pair (any more), and OSError.
    """

    def __init__(self, path: Path, lines: array[int], finish: Callable[[Pair], Pair]) -> None:
        self._path, self._lines, self._finish = path, lines, finish
        self._file = open_file(path)
        self._starts = _starts(path, lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        number = self._lines[index]
        record = parsed_line(number, self._file.readline())
        pair = record if isinstance(record, BadLine) else pair_of(number, record)
        if isinstance(pair, BadLine):
            raise damaged_line(self._path, pair, "It was a pair a moment ago: something else changed the file.")
        return self._finish(pair)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))


class Picked(Sequence[Item]):
    """Items of another sequence, by their numbers, in that order; 8 bytes each."""

    def __init__(self, source: Sequence[Item], numbers: array[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._source[number] for number in self._numbers[index]]
        return self._source[self._numbers[index]]


class Mapped(Sequence[Item]):
    """A function of each item of another sequence, computed when it is asked for."""

    def __init__(self, source: Sequence[Source], function: Callable[[Source], Item]) -> None:
        self._source, self._function = source, function

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._function(item) for item in self._source[index]]
        return self._function(self._source[index])


def _starts(path: Path, lines: array[int]) -> array[int]:
    """The byte at which each of these lines begins."""
    starts, wanted, at = array("Q"), iter(lines), 0
    line = next(wanted, None)
    with open_file(path) as file:
        for number, raw in enumerate(file):
            if number == line:
                starts.append(at)
                line = next(wanted, None)
            at += len(raw)
    if len(starts) < len(lines):
        raise DamagedState(
            f"{path} is shorter than it was a moment ago.",
            "Something else changed the file while the run read it.",
            "Leave it alone while the run works, and run the same command again.",
        )
    return starts
