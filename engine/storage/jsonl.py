"""JSON Lines on disk: an appender that acknowledges a record only once it is synced, and a reader.

A record is a line that ends in a newline. Lines are cut at `\\n` only (`str.splitlines` would cut a valid record at
U+2028). Whatever a killed writer left after the last newline was never acknowledged: it is set aside and reported.
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
"""Bytes. A longer line is not a record: without a limit, a file without newlines would fill the memory."""


class JsonlAppender:
    """Append records to one file. Safe to call from several threads; one process at a time (the run's lock).

    torn   bytes of an unfinished last line found on opening, now in `torn_path`; 0 if there was none
    """

    def __init__(self, path: Path, *, acknowledges: bool = True) -> None:
        """acknowledges whether a record counts once it is appended; if not, the caller uses `require_in_place` when it
        matters
        """
        self.path = path
        self._acknowledges = acknowledges
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._file = open_for_append(path)
        self.torn, self.torn_path = self._put_torn_tail_aside()

    def append(self, record: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write one record; when this returns with `sync`, the record survives a power cut, in the file that has this name.

        Raises DiskError (or what else it is to `system_error`) after cutting a half-written line off again, so that the file
        stays whole, and as `require_in_place`.
        """
        line = dumps(record).encode("ascii") + b"\n"
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                failpoint("append")
                rest = memoryview(line)
                while rest:  # a short write is no error yet: the next one says what is wrong
                    rest = rest[os.write(self._file, rest) :]
                if sync:
                    failpoint("sync")
                    os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, end)
                what = f"A record of {len(line)} bytes could not be written to {self.path}."
                raise (
                    system_error(error, what) or DiskError(what, f"{error}.", "Then run the same command again.")
                ) from error
            if self._acknowledges:
                self.require_in_place()

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._file).st_size

    def require_in_place(self) -> None:
        """Raises DamagedState if the file is no longer at its path, UnsafeError if a link is there: records would go to an
        unnamed file, or to another one.
        """
        try:
            there = self.path.lstat()
        except OSError:
            there = None
        if there is not None and os.path.samestat(there, os.fstat(self._file)):
            return
        if there is not None:
            refuse_special_file(self.path, there.st_mode)
        raise DamagedState(
            f"{visible_line(str(self.path))} was {'removed' if there is None else 'replaced'} while this process wrote to it.",
            "An editor or a copy put another file in its place. What was acknowledged before is in the file that was there; "
            "nothing more was counted.",
            "Put the file back if you have it, and leave it alone while the run works. Then run the same command again: it "
            "makes what the file does not have.",
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

    def _put_torn_tail_aside(self) -> tuple[int, Path | None]:
        size = os.fstat(self._file).st_size
        whole = _end_of_last_whole_line(self._file, size)
        if whole == size:
            return 0, None
        tail = os.pread(self._file, size - whole, whole)
        number = 1
        while (aside := self.path.with_name(f"{self.path.stem}.torn-{number}")).exists():
            number += 1
        aside.write_bytes(tail)
        os.ftruncate(self._file, whole)
        failpoint("sync")
        os.fsync(self._file)
        return len(tail), aside


def open_for_append(path: Path) -> int:
    """Raises UnsafeError for a link, a pipe, a device; DamagedState for a folder; OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o644)
    except IsADirectoryError:
        raise DamagedState(
            f"{visible_line(str(path))} is a folder.",
            "A run has a file of this name: something else put the folder there.",
            "Look at what it is, move it out of the run folder, and run the same command again.",
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
    """Yield (line number from 0, record or BadLine) in constant memory; skips blank lines. A last line without a newline is
    unfinished and left out, unless the file is somebody else's (`last_line_may_lack_newline`). Raises UnsafeError if it is
    not a regular file, OSError.
    """
    with open_file(path) as file:
        yield from read_records(file, last_line_may_lack_newline=last_line_may_lack_newline)


def unterminated_last_line(path: Path) -> bytes:
    """What follows the last newline, up to the longest allowed line. Raises what `read_jsonl` raises."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        whole = _end_of_last_whole_line(file.fileno(), size)
        file.seek(whole)
        return file.read(MAX_LINE_BYTES)


def read_records(
    file: BinaryIO, *, last_line_may_lack_newline: bool = False, read: Callable[[bytes], Any] | None = None
) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """`read_jsonl` of an open file, a pipe, or a decompressed stream. `read` is how a line is parsed: `loads`, if not given."""
    number = -1
    while True:
        number += 1
        try:
            raw = file.readline(MAX_LINE_BYTES)
            if not raw:
                return
            whole = raw.endswith(b"\n")
            cut = not whole and len(raw) == MAX_LINE_BYTES
            if cut:
                whole = _skip_to_next_line(file)
        except EOFError as error:  # of what unpacks it (engine.pairs.formats.streams)
            yield number, BadLine(number, str(error))
            return
        if not whole and not last_line_may_lack_newline:
            return
        if cut:
            yield number, too_long(number)
            continue
        if number == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            record = parsed_line(number, raw, read or loads)
            if not whole and isinstance(record, BadLine):
                record = BadLine(number, f"{record.reason} (the last line, and no newline ends it: it is torn)")
            yield number, record


def dumps(record: Mapping[str, Any]) -> str:
    """A record as one line of ASCII JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def loads(raw: bytes | str) -> Any:
    """Strict JSON. NaN, Infinity, absurdly long numbers, duplicate keys, bytes that are not UTF-8, and more than `MAX_DEPTH`
    levels are errors (ValueError).
    """
    return _loaded(raw, _DECODER)


def loads_allowing_nan(raw: bytes | str) -> Any:
    """`loads` of other people's files, with the NaN and Infinity that Python writes: a column that nobody reads may hold them."""
    return _loaded(raw, _DECODER_ALLOWING_NAN)


def _loaded(raw: bytes | str, decoder: json.JSONDecoder) -> Any:
    # Not json's own guess at the encoding: it takes a hole of NULs for UTF-16, and lets lone surrogates through.
    text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        check_nesting(value)
    return value


def parsed_line(number: int, raw: bytes, read: Callable[[bytes], Any] = loads) -> dict[str, Any] | BadLine:
    """The record of a line, or why it is not one."""
    try:
        record = read(raw)
    except ValueError as error:
        return BadLine(number, f"not JSON: {_said(error, raw)}")
    if not isinstance(record, dict):
        return BadLine(number, f"not a JSON object, but {_kind(record)}")
    return record


def _said(error: Exception, raw: bytes) -> str:
    if b"\0" in raw:
        return "NUL bytes, as a crash leaves them in a file"
    match error:
        case json.JSONDecodeError():
            return f"{error.msg}, at character {error.pos + 1}"
        case UnicodeDecodeError():
            return f"byte {error.start + 1} (0x{raw[error.start]:02x}) is no UTF-8"
    return "a number of thousands of digits" if "int_max_str_digits" in str(error) else str(error)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def too_long(number: int) -> BadLine:
    return BadLine(number, f"longer than {MAX_LINE_BYTES >> 20} MiB")


def _skip_to_next_line(file: BinaryIO) -> bool:
    """Whether there was one."""
    while rest := file.readline(MAX_LINE_BYTES):
        if rest.endswith(b"\n"):
            return True
    return False


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!a} stands twice in one object")
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
_DECODER_ALLOWING_NAN = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=float)


def _end_of_last_whole_line(file: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
