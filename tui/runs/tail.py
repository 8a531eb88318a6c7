"""Follow a JSONL file that another process appends to, by whole lines."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from engine.core.reading import open_file
from engine.storage.jsonl import MAX_LINE_BYTES, BadLine, loads, parse_line, too_long

BLOCK_BYTES = 4 << 20


BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One complete line: its position in the file and its content."""

    number: int
    offset: int
    length: int
    record: dict[str, Any] | BadLine


@dataclass(frozen=True)
class TailChunk:
    """The result of one read."""

    lines: list[Line] = field(default_factory=list)
    was_replaced: bool = False
    """The file was replaced or truncated: forget its earlier content."""


class JsonlTail:
    """Remembers how far it has read. An incomplete last line or a missing file waits for the next read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._number = 0
        self._inode: int | None = None

    def read(self) -> TailChunk:
        """The next complete lines, at most about four megabytes; none if there are none yet."""
        try:
            with open_file(self.path) as file:
                was_replaced = self._detect_replacement(os.fstat(file.fileno()))
                file.seek(self._offset)
                block = file.read(BLOCK_BYTES)
                if len(block) == BLOCK_BYTES and b"\n" not in block:
                    block += file.readline(MAX_LINE_BYTES)  # a line longer than a block
                if len(block) >= MAX_LINE_BYTES and b"\n" not in block:
                    return self._skip_long_line(file, len(block), was_replaced)
        except (FileNotFoundError, IsADirectoryError):
            return TailChunk(was_replaced=self._reset())
        return TailChunk(self._lines(block[: block.rfind(b"\n") + 1]), was_replaced)

    def _skip_long_line(self, file: BinaryIO, length: int, was_replaced: bool) -> TailChunk:
        """Skip one line that is too long to be a record. The next read continues after it."""
        while block := file.readline(MAX_LINE_BYTES):
            length += len(block)
            if block.endswith(b"\n"):
                bad = Line(self._number, self._offset, length - 1, too_long(self._number))
                self._number += 1
                self._offset += length
                return TailChunk([bad], was_replaced)
        return TailChunk(was_replaced=was_replaced)

    def _detect_replacement(self, stat: os.stat_result) -> bool:
        another = self._inode is not None and (stat.st_ino != self._inode or stat.st_size < self._offset)
        if another:
            self._reset()
        self._inode = stat.st_ino
        return another

    def _reset(self) -> bool:
        had_read = self._offset > 0
        self._offset, self._number, self._inode = 0, 0, None
        return had_read

    def _lines(self, block: bytes) -> list[Line]:
        lines = []
        for raw in block.split(b"\n")[:-1]:
            if raw.strip():
                lines.append(
                    Line(self._number, self._offset, len(raw), parse_line(self._number, raw.removeprefix(BOM)))
                )
            self._number += 1
            self._offset += len(raw) + 1
        return lines


def read_line(path: Path, line: Line) -> dict[str, Any]:
    """The record of `line`, read again from disk. Raises OSError or ValueError if it is no longer there."""
    with open_file(path) as file:
        file.seek(line.offset)
        record = loads(file.read(line.length))
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record
