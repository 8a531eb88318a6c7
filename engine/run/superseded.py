"""Files that a run set aside, in `superseded/1`, `superseded/2`, …: nothing is deleted, and valid records may be reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.core import layout
from engine.storage.documents import read_json_or_none


def superseded_folders(run_folder: Path) -> list[Path]:
    """Newest first."""
    numbered = [path for path in (run_folder / layout.SUPERSEDED_DIR).glob("*") if path.name.isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def is_reusable(folder: Path) -> bool:
    """Whether its records may be reused: only if its note says so (after `--from` it doesn't)."""
    return note_of(folder).get("reusable") is True


def note_of(folder: Path) -> dict[str, Any]:
    """What was written beside the files when they were set aside; empty where nothing readable was."""
    note: dict[str, Any] | None = read_json_or_none(folder / layout.SUPERSEDED_NOTE, dict[str, Any])
    return note or {}
