"""The theme that a person chose last, kept between starts in $XDG_STATE_HOME/stage3-tui/theme."""

from __future__ import annotations

import os
from pathlib import Path


def _file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "stage3-tui" / "theme"


def chosen_last() -> str | None:
    """Its name; None where nobody has chosen one. It may be of a file that is gone."""
    try:
        return _file().read_text(encoding="utf-8", errors="replace").strip() or None
    except (OSError, RuntimeError):  # nothing was kept; nobody is at home
        return None


def keep(name: str) -> Path:
    """Keep a name for the next start; where it is kept. Raises OSError where that cannot be."""
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n", encoding="utf-8")
    return path
