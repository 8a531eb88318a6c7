"""JSON lines on disk: an appender that acknowledges a record only when it is synced, and a reader for what is there.

A record is a line that ends in a newline. Lines are cut at `\\n` only (`str.splitlines` would cut a valid record at
U+2028). What a killed writer left after the last newline was never acknowledged: it is put aside, and reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from engine.errors import DiskError

_BLOCK = 1 << 16


class JsonlAppender:
    """Append records to one file. Safe to call from several threads; one process at a time (the run's lock).

    torn   bytes of an unfinished last line found on opening, now in `torn_path`; 0 where there was none
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.torn, self.torn_path = self._put_torn_tail_aside()

    def append(self, record: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write one record; when this returns with `sync`, the record survives a power cut.

        Raises DiskError after cutting a half-written line off again, so that the file stays whole.
        """
        line = dumps(record).encode("ascii") + b"\n"
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    raise OSError(28, f"only {written} of {len(line)} bytes were written")
                if sync:
                    os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, end)
                raise DiskError(
                    f"A record of {len(line)} bytes could not be written to {self.path}.",
                    str(error),
                    "Free some space, then start the same command again: everything acknowledged so far is kept.",
                ) from error

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
        os.fsync(self._file)
        return len(tail), aside


@dataclass(frozen=True)
class BadLine:
    """A line that is no record."""

    line: int
    """Counted from 0."""
    reason: str


def read_jsonl(
    path: Path, *, last_line_may_lack_newline: bool = False
) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """Yield (line number from 0, record or BadLine) in constant memory; blank lines are passed over.

    A last line without a newline is what a writer has not finished yet, and is left out, unless the file is
    somebody else's and `last_line_may_lack_newline`.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            if not raw.endswith(b"\n") and not last_line_may_lack_newline:
                return
            if number == 0:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield number, _parsed(number, raw)


def dumps(record: Mapping[str, Any]) -> str:
    """One record as ASCII JSON, on one line whatever is in it. Raises ValueError for NaN and infinities."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def loads(raw: bytes | str) -> Any:
    """JSON as everybody writes it, but NaN, Infinity and numbers of absurd length are errors (ValueError)."""
    return json.loads(raw, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _parsed(number: int, raw: bytes) -> dict[str, Any] | BadLine:
    try:
        record = loads(raw)
    except (ValueError, RecursionError) as error:
        return BadLine(number, f"not JSON: {error}")
    if not isinstance(record, dict):
        return BadLine(number, f"a JSON {type(record).__name__}, not an object")
    return record


def _end_of_last_whole_line(file: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
