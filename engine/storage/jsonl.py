"""JSON Lines on disk: an appender that acknowledges a record only once it is synced, and a reader.

A record is a line that ends in a newline. Lines are split at `\\n` only (`str.splitlines` would split a valid record at
U+2028). Anything that a killed writer left after the last newline was never acknowledged; it is set aside and reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from engine.core.errors import DamagedState, DiskError, UnsafeError
from engine.core.failpoints import failpoint
from engine.core.nesting import MAX_DEPTH, TOO_DEEP, check_nesting
from engine.core.reading import open_file, refuse_special_file
from engine.core.system_errors import system_error
from engine.security.sanitize import visible_line

_BLOCK = 1 << 16

MAX_LINE_BYTES = 16 << 20
"""A longer line is not a record. Without a limit, a file without newlines would fill the memory."""


class JsonlAppender:
    """Append records to one file. Safe to use from several threads, but only from one process at a time (the run's lock).

    torn   bytes of an unfinished last line found on opening, now in `torn_path`; 0 if there was none
    """

    def __init__(self, path: Path, *, acknowledges: bool = True) -> None:
        """acknowledges   whether a record counts once it is appended; if not, the caller must call `require_in_place`"""
        self.path = path
        self._acknowledges = acknowledges
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._file = open_for_append(path)
        self.torn, self.torn_path = self._set_torn_tail_aside()

    def append(self, record: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write one record. With `sync`, the record is in the file at this path and survives a power cut when this returns.

        Raises DiskError (or another error of `system_error`) after removing a half-written line, so that the file stays valid,
        and the errors of `require_in_place`.
        """
        line = dumps(record).encode("ascii") + b"\n"
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                failpoint("append")
                rest = memoryview(line)
                while rest:  # a short write is not an error yet: the next write reports the reason
                    rest = rest[os.write(self._file, rest) :]
                if sync:
                    failpoint("sync")
                    os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, end)
                what = f"Cannot write a record of {len(line)} bytes to {self.path}."
                raise (
                    system_error(error, what)
                    or DiskError(what, f"{error}.", "Fix the cause, then run the same command again.")
                ) from error
            if self._acknowledges:
                self.require_in_place()

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return os.fstat(self._file).st_size

    def require_in_place(self) -> None:
        """Raises DamagedState if the file is no longer at its path, UnsafeError if the path is now a link. Otherwise records
        would go to a file without a name, or to another file.
        """
        try:
            current = self.path.lstat()
        except OSError:
            current = None
        if current is not None and os.path.samestat(current, os.fstat(self._file)):
            return
        if current is not None:
            refuse_special_file(self.path, current.st_mode)
        raise DamagedState(
            f"{visible_line(str(self.path))} was {'removed' if current is None else 'replaced'} while this process wrote to it.",
            "An editor or a copy may have done this. Everything saved until then is in the original file; later records do not "
            "count.",
            "Restore the original file if you have it, and do not change it while the run is working. Then run the same command "
            "again: it makes the missing records.",
        )

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_torn_tail_aside(self) -> tuple[int, Path | None]:
        size = os.fstat(self._file).st_size
        end = _end_of_last_complete_line(self._file, size)
        if end == size:
            return 0, None
        tail = os.pread(self._file, size - end, end)
        number = 1
        while (aside := self.path.with_name(f"{self.path.stem}.torn-{number}")).exists():
            number += 1
        aside.write_bytes(tail)
        os.ftruncate(self._file, end)
        failpoint("sync")
        os.fsync(self._file)
        return len(tail), aside


def open_for_append(path: Path) -> int:
    """Open a file to append to it. Raises UnsafeError for a link, a pipe or a device, DamagedState for a folder, and OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o644)
    except IsADirectoryError:
        raise DamagedState(
            f"{visible_line(str(path))} is a folder.",
            "In a run folder, this name belongs to a file: another program created the folder.",
            "Check what it is, move it out of the run folder, and run the same command again.",
        ) from None
    except OSError:
        if os.path.lexists(path):
            refuse_special_file(path, path.lstat().st_mode)
        raise
    try:
        refuse_special_file(path, os.fstat(file).st_mode)
    except UnsafeError:
        os.close(file)
        raise
    return file


@dataclass(frozen=True)
class BadLine:
    """A line that is not a record."""

    line: int
    """Counted from 0."""
    reason: str


def read_jsonl(
    path: Path, *, last_line_may_lack_newline: bool = False
) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """Yield (line number from 0, record or BadLine) in constant memory, without blank lines. A last line without a newline is
    unfinished and left out, unless `last_line_may_lack_newline` (for files of other programs). Raises UnsafeError if it is not
    a regular file, and OSError.
    """
    with open_file(path) as file:
        yield from read_records(file, last_line_may_lack_newline=last_line_may_lack_newline)


def unterminated_last_line(path: Path) -> bytes:
    """The bytes after the last newline, up to the longest allowed line. Raises the errors of `read_jsonl`."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(_end_of_last_complete_line(file.fileno(), size))
        return file.read(MAX_LINE_BYTES)


def read_records(
    file: BinaryIO, *, last_line_may_lack_newline: bool = False, read: Callable[[bytes], Any] | None = None
) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """`read_jsonl` for an open file, a pipe, or a decompressed stream. `read` parses a line; by default, `loads`."""
    number = -1
    while True:
        number += 1
        try:
            raw = file.readline(MAX_LINE_BYTES)
            if not raw:
                return
            complete = raw.endswith(b"\n")
            cut = not complete and len(raw) == MAX_LINE_BYTES
            if cut:
                complete = _skip_to_next_line(file)
        except EOFError as error:  # from decompression (engine.pairs.formats.streams)
            yield number, BadLine(number, str(error))
            return
        if not complete and not last_line_may_lack_newline:
            return
        if cut:
            yield number, too_long(number)
            continue
        if number == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            record = parse_line(number, raw, read or loads)
            if not complete and isinstance(record, BadLine):
                record = BadLine(number, f"{record.reason} (the last line does not end in a newline: it is incomplete)")
            yield number, record


def dumps(record: Mapping[str, Any]) -> str:
    """A record as one line of ASCII JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def loads(raw: bytes | str) -> Any:
    """Parse strict JSON. Raises ValueError for NaN, Infinity, absurdly long numbers, duplicate keys, bytes that are not UTF-8,
    and more than `MAX_DEPTH` levels.
    """
    return _decode(raw, _DECODER)


def loads_allowing_nan(raw: bytes | str) -> Any:
    """`loads` for files of other programs: accepts the NaN and Infinity that Python writes, perhaps in columns we do not use."""
    return _decode(raw, _DECODER_ALLOWING_NAN)


def _decode(raw: bytes | str, decoder: json.JSONDecoder) -> Any:
    # Do not let json guess the encoding: it takes a block of NULs for UTF-16, and accepts lone surrogates.
    text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_nesting(value)
    return value


def parse_line(number: int, raw: bytes, read: Callable[[bytes], Any] = loads) -> dict[str, Any] | BadLine:
    """The record in a line, or the reason why it is not a record."""
    try:
        record = read(raw)
    except ValueError as error:
        return BadLine(number, f"not JSON: {_reason(error, raw)}")
    if not isinstance(record, dict):
        return BadLine(number, f"not a JSON object, but {_kind(record)}")
    return record


def _reason(error: Exception, raw: bytes) -> str:
    if b"\0" in raw:
        return "NUL bytes, as a crash leaves them in a file"
    match error:
        case json.JSONDecodeError():
            return f"{error.msg}, at character {error.pos + 1}"
        case UnicodeDecodeError():
            return f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"
    return "a number with thousands of digits" if "int_max_str_digits" in str(error) else str(error)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def too_long(number: int) -> BadLine:
    return BadLine(number, f"longer than {MAX_LINE_BYTES >> 20} MiB")


def _skip_to_next_line(file: BinaryIO) -> bool:
    """Whether there is a next line."""
    while rest := file.readline(MAX_LINE_BYTES):
        if rest.endswith(b"\n"):
            return True
    return False


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {duplicate[:40]!a} appears twice in one object")
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicate_keys, parse_constant=_refuse_constant)
_DECODER_ALLOWING_NAN = json.JSONDecoder(object_pairs_hook=_without_duplicate_keys, parse_constant=float)


def _end_of_last_complete_line(file: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
