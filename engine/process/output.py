"""Split a child's output into sanitised lines, and keep a bounded part of it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from engine.security.sanitize import visible_line

MAX_LINE_CHARACTERS = 4000
MAX_LINES = 10_000
TAIL_LINES = 40


class OutputTail:
    """The part of a child's output that is kept: at most MAX_LINES lines of MAX_LINE_CHARACTERS each."""

    def __init__(self) -> None:
        self.output: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.count = 0

    def note(self, line: str, *, is_output: bool) -> Iterator[str]:
        """Keep a line, and yield it unless there were too many."""
        self.tail.append(line)
        self.count += 1
        if is_output and len(self.output) < MAX_LINES:
            self.output.append(line)
        if self.count <= MAX_LINES:
            yield line
        elif self.count == MAX_LINES + 1:
            yield f"… more than {MAX_LINES} lines; the rest is hidden"


class LineSplitter:
    """Splits bytes into sanitised lines, also at the carriage returns of progress bars."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        *complete, self._rest = re.split(rb"[\r\n]", self._rest + data)
        self._rest = self._rest[: 4 * MAX_LINE_CHARACTERS]  # a gigabyte without a newline must not be kept
        for line in complete:
            yield from self._sanitised(line)

    def end(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        yield from self._sanitised(rest)

    def _sanitised(self, line: bytes) -> Iterator[str]:
        if text := visible_line(line.decode("utf-8", errors="replace"), MAX_LINE_CHARACTERS):
            yield text
