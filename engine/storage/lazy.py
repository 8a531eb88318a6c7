"""Sequences whose items are made or read when they are asked for, so that a large one needs little memory."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from engine.core.errors import DamagedState
from engine.core.reading import open_file
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine, parsed_line

Source = TypeVar("Source")
Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """A sequence that makes or reads one item at a time, each time that it is asked for."""

    @abstractmethod
    def at(self, index: int) -> Item:
        """The item at `index`, which is from 0 to its length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))[index]  # raises IndexError
        return [self.at(place) for place in places] if isinstance(places, range) else self.at(places)


class Mapped(LazySequence[Item]):
    """A function of each item of another sequence, computed when it is asked for."""

    def __init__(self, source: Sequence[Source], function: Callable[[Source], Item]) -> None:
        self._source, self._function = source, function

    def __len__(self) -> int:
        return len(self._source)

    def at(self, index: int) -> Item:
        return self._function(self._source[index])


def take(source: Sequence[Item], numbers: array[int]) -> Sequence[Item]:
    """Items of a sequence, by their numbers, in that order; 8 bytes each."""
    return Mapped(numbers, source.__getitem__)


class JsonLines(LazySequence[dict[str, Any]]):
    """The records of the lines `lines` (from 0, ascending) of a file that nobody writes to meanwhile; 16 bytes each.

    Raises DamagedState for a line that is no record any more, and as `line_starts`.
    """

    def __init__(self, path: Path, lines: array[int]) -> None:
        self._path, self._lines = path, lines
        self._file = open_file(path)
        self._starts = line_starts(path, lines)

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> dict[str, Any]:
        self._file.seek(self._starts[index])
        record = parsed_line(self._lines[index], self._file.readline().removeprefix(b"\xef\xbb\xbf"))
        if isinstance(record, BadLine):
            raise DamagedState(
                f"Line {record.line + 1} of {visible_line(str(self._path))} is damaged: {record.reason}.",
                "It was a record a moment ago: something else changed the file.",
                "Leave it alone while the run works, and run the same command again.",
            )
        return record


def line_starts(path: Path, lines: array[int]) -> array[int]:
    """The byte at which each of these lines (from 0, ascending) begins. Raises DamagedState if the file has fewer, and OSError."""
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
