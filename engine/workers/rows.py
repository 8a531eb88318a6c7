"""The files that workers append their rows to, one file each, in `pairs/shares/` or `evaluation/shares/`.

They are removed once the set is complete. Until then they keep what was made if the run, or one of its processes, is killed.
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
    """The file of one worker. `kind`: what the rows are, "pairs", "relevance", "scores" or "evaluation"."""
    return _folder(run, kind) / f"{kind}-{number}.jsonl"


def earlier_rows(run: Run, kind: str) -> Iterator[dict[str, Any]]:
    """The rows that workers of an earlier start left. Damaged lines are skipped."""
    for path in _files(run, kind):
        for _, row in read_jsonl(path):
            if not isinstance(row, BadLine):
                yield row


def rows_between(path: Path, start: int, end: int) -> list[dict[str, Any]]:
    """The rows between two byte offsets, each of them at the start of a line."""
    with open_file(path) as file:
        file.seek(start)
        rows = read_records(io.BytesIO(file.read(end - start)))
        return [row for _, row in rows if not isinstance(row, BadLine)]


def remove_shares(run: Run, kind: str) -> None:
    """Remove the files of all workers, once their rows are in the set."""
    for path in _files(run, kind):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # another kind has files there, or the folder never existed
        _folder(run, kind).rmdir()


def _files(run: Run, kind: str) -> list[Path]:
    return sorted(_folder(run, kind).glob(f"{kind}-*.jsonl"))


def _folder(run: Run, kind: str) -> Path:
    return run / (layout.EVALUATION_SHARES_DIR if kind == "evaluation" else layout.SHARES_DIR)
