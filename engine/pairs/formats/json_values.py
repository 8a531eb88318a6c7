"""JSON that is not one record per line: an array of records, multi-line records, or an object around an array.

It streams one record at a time, however long the array is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from engine.pairs.formats.streams import PEEK_BYTES, head
from engine.storage.jsonl import MAX_LINE_BYTES, BadLine, loads, loads_allowing_nan, parse_line

_BLOCK = 1 << 16
_TOKEN = re.compile(rb'[\[\]{}",]')
_STRING_REST = re.compile(rb'(?:[^"\\]|\\.)*+"', re.DOTALL)
_ARRAY = re.compile(rb"\s*\[\s*[\[{\]\"]")
_TEXT = rb'"(?:[^"\\]|\\.)*+"'
_FLAT = rb'\{(?:[^{}\[\]"]|' + _TEXT + rb")*+\}"
_SCALAR = rb"(?:" + _TEXT + rb"|[-+.\w]+|" + _FLAT + rb")"
_WRAPPED = re.compile(
    rb'\s*\{\s*(?:"\w+"\s*:\s*' + _SCALAR + rb"\s*,\s*)*"
    rb'"(?:data|rows|records|examples|samples|instances|items|train|test|validation)"\s*:\s*\[',
    re.IGNORECASE,
)


def is_json_document(file: BufferedReader, *, one_per_line: bool) -> bool:
    """Whether to read a JSON text value by value rather than line by line.

    one_per_line   the file name says JSON lines; then only an array is recognised
    """
    start = head(file)
    first, newline, _ = start.lstrip().partition(b"\n")
    if newline and first.strip() == b"{":
        return True  # one value over many lines, whatever the file's name
    if _ARRAY.match(start) or start.strip() == b"[":
        return not one_per_line or not start.lstrip().startswith(b'["')
    if one_per_line:
        return False
    return bool(_WRAPPED.match(start)) or (
        (bool(newline) or len(start) < PEEK_BYTES) and first.startswith(b"{") and not _is_whole(first)
    )


def json_values(file: BufferedReader) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """Yield (number from 0, record or BadLine) for each element of the array, or for each of consecutive values."""
    wrapped = _WRAPPED.match(head(file))
    opened = bool(_ARRAY.match(head(file))) or head(file).strip() == b"["
    scanner = _Scanner(file)
    if wrapped:
        scanner.skip(wrapped.end())
    elif opened:
        scanner.skip(head(file).index(b"[") + 1)
    number = 0
    try:
        for raw in scanner.values(in_array=bool(wrapped or opened)):
            yield number, _record(number, raw)
            number += 1
    except EOFError as error:
        yield number, BadLine(number, str(error))
        return
    if not scanner.ended:
        yield number, BadLine(number, "the array is not closed: the file is truncated")


def _record(number: int, raw: bytes | None) -> dict[str, Any] | BadLine:
    """A bare string becomes a row with the single column `text`."""
    if raw is None:
        return BadLine(number, _TOO_LONG)
    return parse_line(number, b'{"text":' + raw + b"}" if raw.startswith(b'"') else raw, loads_allowing_nan)


_TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB, or a bracket is missing"


_BETWEEN = b", \t\r\n"
"""Values without an array around them often still have commas in between."""


class _Scanner:
    """Finds the end of each value by its brackets and quotes alone, so a broken value does not affect the next one."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._buffer, self._at_end = file, b"", False
        self.ended = False
        """The array was closed, or the last bare value was complete."""

    def skip(self, count: int) -> None:
        self._file.read(count)

    def values(self, *, in_array: bool) -> Iterator[bytes | None]:
        """Yield the text of each value. A value over the record limit yields None and ends the file."""
        start = place = depth = 0
        while True:
            token = _TOKEN.search(self._buffer, place)
            if token is None:
                place = len(self._buffer)
            elif token[0] == b'"':
                rest = _STRING_REST.match(self._buffer, token.end())
                place = rest.end() if rest else token.start()
                token = token if rest else None
            else:
                place = token.end()
            if token is None:
                if len(self._buffer) - start > MAX_LINE_BYTES:
                    yield None
                    self.ended = True
                    return
                self._buffer, place, start = self._buffer[start:], place - start, 0
                if not self._more():
                    break
                continue
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
            if not in_array and depth < 0:
                depth = 0  # an extra bracket: report the value it closes as damaged and continue with the next
            at_top = depth == 0 and (token[0] == b"," if in_array else token[0] == b"}")
            if depth < 0 or at_top:
                text = self._buffer[start : place if not in_array else token.start()].strip(_BETWEEN)
                if text:
                    yield text
                start = place
            if depth < 0:
                self.ended = True
                return
        text = self._buffer[start:].strip(_BETWEEN)
        self.ended = not in_array
        if text:
            yield text

    def _more(self) -> bool:
        block = self._file.read(max(_BLOCK, len(self._buffer)))
        self._buffer += block
        return bool(block)


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(loads(line), dict)
    except (ValueError, RecursionError):
        return False
