"""A token in a file that only its owner can read (`--token-file`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from engine.core.errors import AccessError, UnsafeError
from engine.core.reading import open_file
from engine.core.users import user_name
from engine.security.secrets import Secret

LONGEST_TOKEN = 4096
"""Characters; the Hub's tokens have about forty, those of an identity provider about two thousand."""


def read_token_file(path: str) -> Secret:
    """The first line of a file that only its owner can read. Raises AccessError or UnsafeError."""
    file = Path(path).expanduser()
    try:
        with open_file(file, follow_links=True) as opened:
            mode = os.fstat(opened.fileno()).st_mode  # of the open file: the name may point elsewhere by now
            if mode & 0o077:
                raise UnsafeError(
                    f"Others can read the token file {file} (mode {mode & 0o777:04o}).",
                    "A token that others can read is not a secret.",
                    f"Run `chmod 600 {file}`.",
                )
            return token_line(opened, f"the token file {file}")
    except UnicodeDecodeError:  # its message would quote the file
        raise AccessError(
            f"The token file {file} is not a text file.", "It is not UTF-8.", "Pass another file with --token-file."
        ) from None
    except OSError as error:
        raise AccessError(
            f"Cannot read the token file {file}.", f"{error}{owner_note(file)}", "Pass another file with --token-file."
        ) from error


def token_line(stream: IO[str] | IO[bytes], where: str) -> Secret:
    """The first line of an untrusted stream. Raises AccessError if it is longer than any token."""
    line = stream.readline(LONGEST_TOKEN + 1)
    text = line.decode("utf-8") if isinstance(line, bytes) else line
    if len(text) > LONGEST_TOKEN:
        raise AccessError(
            f"There is no token in {where}.",
            f"Its first line has more than {LONGEST_TOKEN:,} characters.",
            "Pass only the token, on one line.",
        )
    return Secret(text.strip())


def owner_note(file: Path) -> str:
    """A sentence about the owner of a file; empty if it is ours or unknown."""
    try:
        owner = file.stat().st_uid
    except OSError:
        return ""
    if owner == os.geteuid():
        return ""
    return f". It belongs to {user_name(owner)}, and this process runs as {user_name(os.geteuid())}"
