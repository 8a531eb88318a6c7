"""The files that the processes append to, each to its own, in `pairs/shares/`, or `evaluation/shares/` for the evaluation.

They are gone once a set is whole. What is in them after a run was killed, or after one of its processes was, is not made again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.reading import open_file
from engine.run.folder import Run
from engine.storage.jsonl import BadLine, read_jsonl, read_records


def share_file(run: Run, kind: str, number: int) -> Path:
    """The file of one process. `kind`: what the rows are, "pairs", "relevance", "scores" or "evaluation"."""
    return _folder(run, kind) / f"{kind}-{number}.jsonl"


def left_rows(run: Run, kind: str) -> Iterator[dict[str, Any]]:
    """The rows that processes of an earlier start left; damaged lines are passed over."""
    for path in _files(run, kind):
        for _, row in read_jsonl(path):
            if not isinstance(row, BadLine):
                yield row


def rows_between(path: Path, start: int, end: int) -> list[dict[str, Any]]:
    """The rows of a part of a file, in bytes, which begins and ends with a line."""
    with open_file(path) as file:
        file.seek(start)
        rows = read_records(io.BytesIO(file.read(end - start)))
        return [row for _, row in rows if not isinstance(row, BadLine)]


def remove_shares(run: Run, kind: str) -> None:
    """All rows are in the set by now."""
    for path in _files(run, kind):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the other kind has files there, or there was never one
        _folder(run, kind).rmdir()


def _files(run: Run, kind: str) -> list[Path]:
    return sorted(_folder(run, kind).glob(f"{kind}-*.jsonl"))


def _folder(run: Run, kind: str) -> Path:
    return run / (layout.EVALUATION_SHARES_DIR if kind == "evaluation" else layout.SHARES_DIR)
