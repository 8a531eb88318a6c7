"""A token in a file that only its owner can read (`--token-file`)."""

from __future__ import annotations

import os
from pathlib import Path

from engine.core.errors import AccessError, UnsafeError
from engine.core.users import user_name
from engine.security.secrets import Secret


def read_token_file(path: str) -> Secret:
    """The first line of a file that only its owner can read. Raises AccessError or UnsafeError."""
    file = Path(path).expanduser()
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode  # of the open file: the name may point elsewhere by now
            if mode & 0o077:
                raise UnsafeError(
                    f"Others can read the token file {file} (mode {mode & 0o777:04o}).",
                    "A token that others can read is not a secret.",
                    f"chmod 600 {file}",
                )
            return Secret(opened.readline().strip())
    except UnicodeDecodeError:  # its message would quote the file
        raise AccessError(
            f"The token file {file} is not a text file.", "It is not UTF-8.", "Pass another file with --token-file."
        ) from None
    except OSError as error:
        raise AccessError(
            f"Cannot read the token file {file}.", f"{error}{not_ours(file)}", "Pass another file with --token-file."
        ) from error


def not_ours(file: Path) -> str:
    """A sentence about the owner of a file; empty if it is ours or unknown."""
    try:
        owner = file.stat().st_uid
    except OSError:
        return ""
    if owner == os.geteuid():
        return ""
    return f". It belongs to {user_name(owner)}, and this process runs as {user_name(os.geteuid())}"
