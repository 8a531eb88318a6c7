"""Lazy sequences, whose items are computed or read on access, so that a large one needs little memory."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from engine.core.errors import DamagedState
from engine.core.reading import open_file
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine, parse_line

Source = TypeVar("Source")
Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """A sequence that computes or reads an item on each access."""

    @abstractmethod
    def at(self, index: int) -> Item:
        """The item at `index`, counted from 0; never negative."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        selected = range(len(self))[index]  # raises IndexError
        return [self.at(number) for number in selected] if isinstance(selected, range) else self.at(selected)


class Mapped(LazySequence[Item]):
    """A function of each item of another sequence, computed on access."""

    def __init__(self, source: Sequence[Source], function: Callable[[Source], Item]) -> None:
        self._source, self._function = source, function

    def __len__(self) -> int:
        return len(self._source)

    def at(self, index: int) -> Item:
        return self._function(self._source[index])


def take(source: Sequence[Item], numbers: array[int]) -> Sequence[Item]:
    """The items with these indices, in this order, at 8 bytes per item."""
    return Mapped(numbers, source.__getitem__)


class JsonLines(LazySequence[dict[str, Any]]):
    """The records in the lines `lines` (from 0, ascending) of a file that must not change meanwhile, at 16 bytes per record.

    Raises DamagedState for a line that is no longer a record, and the errors of `line_starts`.
    """

    def __init__(self, path: Path, lines: array[int]) -> None:
        self._path, self._lines = path, lines
        self._file = open_file(path)
        self._starts = line_starts(path, lines)

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, index: int) -> dict[str, Any]:
        self._file.seek(self._starts[index])
        record = parse_line(self._lines[index], self._file.readline().removeprefix(b"\xef\xbb\xbf"))
        if isinstance(record, BadLine):
            raise DamagedState(
                f"Line {record.line + 1} of {visible_line(str(self._path))} is damaged: {record.reason}.",
                "It was valid a moment ago: another program changed the file.",
                "Do not change the file while the run is working, and run the same command again.",
            )
        return record


def line_starts(path: Path, lines: array[int]) -> array[int]:
    """The byte offset of each of these lines (from 0, ascending). Raises DamagedState if the file has fewer lines, and OSError."""
    starts, wanted, offset = array("Q"), iter(lines), 0
    line = next(wanted, None)
    with open_file(path) as file:
        for number, raw in enumerate(file):
            if number == line:
                starts.append(offset)
                line = next(wanted, None)
            offset += len(raw)
    if len(starts) < len(lines):
        raise DamagedState(
            f"{path} is shorter than it was a moment ago.",
            "Another program changed the file while the run was reading it.",
            "Do not change the file while the run is working, and run the same command again.",
        )
    return starts
