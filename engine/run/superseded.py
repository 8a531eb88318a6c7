"""Files that a run set aside, in `superseded/1`, `superseded/2`, …: nothing is deleted, and valid records may be reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.core import layout


def superseded_folders(run_folder: Path) -> list[Path]:
    """Newest first."""
    numbered = [path for path in (run_folder / layout.SUPERSEDED_DIR).glob("*") if path.name.isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def is_reusable(folder: Path) -> bool:
    """Whether its records may be reused: only if its note says so (after `--from` it doesn't)."""
    return note_of(folder).get("reusable") is True


def note_of(folder: Path) -> dict[str, Any]:
    """The note written beside the files when they were set aside; empty if missing or unreadable."""
    try:
        note = json.loads((folder / layout.SUPERSEDED_NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
