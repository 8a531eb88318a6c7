"""The theme that the user chose last, saved in $XDG_STATE_HOME/stage3-tui/theme."""

from __future__ import annotations

import os
from pathlib import Path

from engine.core.errors import UnsafeError
from engine.core.reading import read_file

MAX_BYTES = 4096


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "stage3-tui" / "theme"


def saved_theme() -> str | None:
    """The name of the theme, or None if none was saved. The theme may no longer exist."""
    try:
        return read_file(_file(), MAX_BYTES, follow_links=True).decode("utf-8", "replace").strip() or None
    except (OSError, RuntimeError, ValueError, UnsafeError):  # no file, or no home folder
        return None


def save_theme(name: str) -> Path:
    """Save a theme's name for the next start; returns the path of the file. Raises OSError."""
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n", encoding="utf-8")
    return path
