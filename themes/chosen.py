"""The theme that a person chose last, kept between starts in $XDG_STATE_HOME/stage3-tui/theme."""

from __future__ import annotations

import os
from pathlib import Path

from engine.core.errors import UnsafeError
from engine.core.reading import read_file

LONGEST_NAME = 4096
"""Bytes."""


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "stage3-tui" / "theme"


def chosen_last() -> str | None:
    """Its name; None where nobody has chosen one. It may be of a file that is gone."""
    try:
        return read_file(_file(), LONGEST_NAME, follow_links=True).decode("utf-8", "replace").strip() or None
    except (OSError, RuntimeError, ValueError, UnsafeError):  # nothing was kept; nobody is at home
        return None


def keep(name: str) -> Path:
    """Keep a name for the next start; where it is kept. Raises OSError where that cannot be."""
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n", encoding="utf-8")
    return path
