"""The files that a run has set aside, in `superseded/1`, `superseded/2`, … Nothing is deleted, and valid records may be reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.core import layout
from engine.storage.documents import read_json_or_none


def superseded_folders(run_folder: Path) -> list[Path]:
    """The folders of files that were set aside, newest first."""
    numbered = [path for path in (run_folder / layout.SUPERSEDED_DIR).glob("*") if path.name.isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def is_reusable(folder: Path) -> bool:
    """Whether the records of a superseded folder may be reused, according to its note. After `--from` they may not."""
    return read_note(folder).get("reusable") is True


def read_note(folder: Path) -> dict[str, Any]:
    """The note written when the files were set aside; empty if there is no readable one."""
    note: dict[str, Any] | None = read_json_or_none(folder / layout.SUPERSEDED_NOTE, dict[str, Any])
    return note or {}
