"""The owners of files."""

from __future__ import annotations

import pwd
from pathlib import Path


def owner_of(path: Path) -> str:
    """The name of the owner of `path`, or "user N" if that user has no name on this machine."""
    return user_name(path.lstat().st_uid)


def user_name(number: int) -> str:
    """The name of a user id, or "user N" if it has none on this machine."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
