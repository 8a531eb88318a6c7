"""A token in a file that only its owner can read (`--token-file`)."""

from __future__ import annotations

import os
from pathlib import Path

from engine.core.errors import AccessError, UnsafeError
from engine.security.secrets import Secret
from engine.storage.files import user_name


def read_token_file(path: str) -> Secret:
    """The first line of a file that nobody else can read. Raises AccessError or UnsafeError."""
    file = Path(path).expanduser()
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode  # of what is read, not of what the name stood for before
            if mode & 0o077:
                raise UnsafeError(
                    f"The token file {file} can be read by others (mode {mode & 0o777:04o}).",
                    "A token that others can read is not a secret.",
                    f"chmod 600 {file}",
                )
            return Secret(opened.readline().strip())
    except UnicodeDecodeError:  # its text would show a part of the file
        raise AccessError(
            f"The token file {file} is no text.", "It is not UTF-8.", "Give another with --token-file."
        ) from None
    except OSError as error:
        raise AccessError(
            f"The token file {file} cannot be read.", f"{error}{not_ours(file)}", "Give another with --token-file."
        ) from error


def not_ours(file: Path) -> str:
    """A sentence about whose a file is, where it is somebody else's; empty where it is ours, or cannot be told."""
    try:
        owner = file.stat().st_uid
    except OSError:
        return ""
    if owner == os.geteuid():
        return ""
    return f". It belongs to {user_name(owner)}, and this process runs as {user_name(os.geteuid())}"
