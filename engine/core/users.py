"""Whom files belong to."""

from __future__ import annotations

import pwd
from pathlib import Path


def owner_of(path: Path) -> str:
    """The name of whom `path` belongs to, or the number where that user has no name here."""
    return user_name(path.lstat().st_uid)


def user_name(number: int) -> str:
    """Of a user's number; the number itself where it has no name here."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
