"""Make standard input, output and error safe, so that nothing that happens to them ends a run.

A scheduler may start the program with them closed, a pipe's reader may exit, a disk may be full, a locale may support only
ASCII. Closed streams are opened on /dev/null. An output that cannot be written is redirected there, and `lost_output`
returns the reason. Characters that the encoding lacks are drawn in ASCII.
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
"""The reader of a pipe, or the terminal, is gone, so no output is lost."""


def prepare_standard_streams() -> None:
    """Call once, at the start of the process, before it opens a file, which would get the number of a closed stream. A
    replacement of `sys.stdout` or `sys.stderr` (by a test, a notebook) stays.
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
    """Why output was lost, for example a full disk; None if nothing was lost, or if only the reader is gone."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, _UnfailingFile) else None
    return None if lost is None or lost.errno in READER_IS_GONE else lost


class _UnfailingFile(io.FileIO):
    """A file whose writes never fail: after an error, it is redirected to /dev/null."""

    lost: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return self._write_when_ready(data)
        except OSError as error:
            self.lost = error
            redirect_to_devnull(self.fileno())
            return memoryview(data).nbytes  # type: ignore[arg-type]

    def _write_when_ready(self, data: object) -> int:
        while (written := super().write(data)) is None:  # type: ignore[arg-type]
            select.select([], [self.fileno()], [])  # another process made it non-blocking, and it is full
        return written


def redirect_to_devnull(number: int) -> None:
    """Point a file descriptor of this process and its future children at /dev/null."""
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
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            os.set_inheritable(null, True)


def _unfailing(number: int, before: TextIO | None) -> TextIO:
    encoding = "utf-8" if before is None else before.encoding
    if before is not None:
        before.flush()
    file = _UnfailingFile(number, "w", closefd=False)
    by_line = number == STDERR or file.isatty()
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, DRAWN_IN_ASCII, line_buffering=by_line)


def _draw_in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Error handler for `codecs`: replaces characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_replacement, error.object[error.start : error.end])), error.end


def _replacement(character: str) -> str:
    return f"\\u{ord(character):04x}" if "\ud800" <= character <= "\udfff" else in_ascii(character)
