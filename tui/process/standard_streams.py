"""Standard input, output and error of this process, such that what happens to them never ends a run.

A scheduler may start the program without them (closed), a pipe's reader may leave, a disk may be full, a locale may have ASCII
alone. Closed ones lead to /dev/null. An output that cannot be written leads there from then on, and `lost_output` says why.
What its encoding lacks is drawn in ASCII.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import TextIO

from tui.process.in_ascii import in_ascii

DRAWN_IN_ASCII = "drawn-in-ascii"
STDIN, STDOUT, STDERR = 0, 1, 2
READER_IS_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO})
"""The reader of a pipe, or the terminal, is gone: nobody misses anything."""


def prepare_standard_streams() -> None:
    """Once, at the start of the process, before it opens anything: a file would get the number of a closed stream. What replaced
    `sys.stdout` or `sys.stderr` before (a test, a notebook) stays.
    """
    _open_closed_streams()
    codecs.register_error(DRAWN_IN_ASCII, _draw_in_ascii)
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _unfailing(STDOUT, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _unfailing(STDERR, sys.__stderr__)


def lost_output() -> OSError | None:
    """Why what was printed did not all arrive, where that is a loss to somebody: a full disk, and not a reader that left."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, _UnfailingFile) else None
    return None if lost is None or lost.errno in READER_IS_GONE else lost


class _UnfailingFile(io.FileIO):
    """A file that takes all that is written to it; what the system refuses goes nowhere."""

    lost: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return self._write_when_it_can(data)
        except OSError as error:
            self.lost = error
            redirect_to_devnull(self.fileno())
            return memoryview(data).nbytes  # type: ignore[arg-type]

    def _write_when_it_can(self, data: object) -> int:
        while (written := super().write(data)) is None:  # type: ignore[arg-type]
            select.select([], [self.fileno()], [])  # somebody made it non-blocking, and it is full for now
        return written


def redirect_to_devnull(number: int) -> None:
    """Let a file descriptor of this process, and of the children to come, be /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, number)
    finally:
        os.close(null)


def _open_closed_streams() -> None:
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(null, True)


def _unfailing(number: int, before: TextIO | None) -> TextIO:
    encoding = "utf-8" if before is None else before.encoding
    if before is not None:
        before.flush()
    file = _UnfailingFile(number, "w", closefd=False)
    by_line = number == STDERR or file.isatty()
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, DRAWN_IN_ASCII, line_buffering=by_line)


def _draw_in_ascii(error: UnicodeError) -> tuple[str, int]:
    """For `codecs`: what takes the place of what the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_drawn, error.object[error.start : error.end])), error.end


def _drawn(character: str) -> str:
    return f"\\u{ord(character):04x}" if "\ud800" <= character <= "\udfff" else in_ascii(character)
