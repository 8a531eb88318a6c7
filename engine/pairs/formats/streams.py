"""Reads a file or a pipe as plain UTF-8: decompresses gzip, zstandard, bzip2 and xz, recodes UTF-16 and UTF-32, and ends
lines with a newline.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import tempfile
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import PurePath
from typing import Any, BinaryIO, cast

from engine.core.errors import UnsafeError
from engine.core.reading import ALWAYS_ALLOWED_BYTES, MAX_DECOMPRESSION_RATIO

PEEK_BYTES = 1 << 12
COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")


def decompressed(file: BufferedReader) -> BufferedReader:
    """The content of a compressed stream, or the stream itself.

    Reading raises EOFError if the data is damaged, and UnsafeError for a decompression bomb.
    """
    for magic, opener in _OPENERS.items():
        if head(file).startswith(magic):
            compressed = _Counted(file)
            return io.BufferedReader(_Decompressed(opener(io.BufferedReader(compressed)), compressed))
    return file


def without_compression_suffix(name: str) -> str:
    """`rows.jsonl.gz` becomes `rows.jsonl`."""
    return PurePath(name).stem if PurePath(name).suffix.lower() in COMPRESSED_SUFFIXES else PurePath(name).name


def head(file: BufferedReader) -> bytes:
    """The first bytes, without consuming them. Raises what reading raises."""
    return file.peek(PEEK_BYTES)[:PEEK_BYTES]


def seekable(file: BufferedReader) -> BinaryIO:
    """A seekable file with the same bytes, which Parquet needs; a pipe is copied to a temporary file."""
    if isinstance(file, BufferedReader) and isinstance(file.raw, io.FileIO) and file.seekable():
        return file
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (deleted when the last reader closes it)
    while block := file.read(1 << 20):
        spool.write(block)
    spool.seek(0)
    return cast(BinaryIO, spool)


def as_utf8(file: BufferedReader) -> BufferedReader:
    """The file as UTF-8 without a byte order mark, from UTF-8, UTF-16 or UTF-32."""
    start = head(file)
    encoding = "utf-32" if start.startswith(_UTF32_MARKS) else _utf16_of(start)
    if encoding is not None:
        return io.BufferedReader(_Recoded(file, encoding))
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file


_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def _utf16_of(start: bytes) -> str | None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a byte order mark: every second byte of ASCII text is NUL. A run of NULs is not UTF-16.
    even, odd = start[0:8:2], start[1:8:2]
    if len(odd) == 4 and not any(odd) and all(even):
        return "utf-16-le"
    return "utf-16-be" if len(odd) == 4 and not any(even) and all(odd) else None


def with_newlines(file: BufferedReader) -> BufferedReader:
    """The file, with carriage returns replaced by newlines if its lines end in these alone, as on old Macs."""
    start = head(file)
    return io.BufferedReader(_WithNewlines(file)) if b"\r" in start and b"\n" not in start else file


class _WithNewlines(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(block)] = block
        return len(block)


class _Decompressed(io.RawIOBase):
    """Wraps a decompressor, turns its various errors for damage into EOFError, and limits the expansion ratio."""

    def __init__(self, file: Any, compressed: _Counted) -> None:
        self._file, self._compressed = file, compressed
        self._expanded_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._file.read1(len(buffer))  # also returns what precedes the damage
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a disk error, not damage
            raise EOFError(f"the compressed data is damaged or ends here: {error}") from error
        self._expanded_bytes += len(block)
        if self._expanded_bytes > max(ALWAYS_ALLOWED_BYTES, MAX_DECOMPRESSION_RATIO * self._compressed.count):
            raise UnsafeError(
                f"{self._compressed.count:,} bytes of compressed data expand to more than {self._expanded_bytes:,}.",
                f"Text expands about tenfold, this file over {MAX_DECOMPRESSION_RATIO}-fold: it would fill the memory or the disk.",
                "Check where the file comes from. If it is intended, unpack it yourself and pass its contents.",
            )
        buffer[: len(block)] = block
        return len(block)


class _Counted(io.RawIOBase):
    """The compressed bytes, counted as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        self.count += len(block)
        buffer[: len(block)] = block
        return len(block)


class _Recoded(io.RawIOBase):
    """Recodes text to UTF-8. A lone surrogate is passed through, so that its line is reported as damaged."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            block = self._file.read(1 << 16)
            try:
                self._waiting = self._decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise EOFError(f"the text is cut off inside a character ({error.reason})") from error
            if not block:
                break
        given, self._waiting = self._waiting[: len(buffer)], self._waiting[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def _zstandard(file: BufferedReader) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


_OPENERS: dict[bytes, Callable[[BufferedReader], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
