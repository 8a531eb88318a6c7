"""A string that does not show itself."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from engine.errors import AccessError, UnsafeError

SERVER_TOKEN_VARIABLE = "STAGE3_SERVER_TOKEN"
"""Where the token of `--server-url` is. It begins like an option's variable, and is none: options are written down."""


class Secret:
    """Holds a token. `str`, `repr` and `format` are masked; it can be neither pickled nor written as JSON."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Every call of this is a place where the token may leak: keep them few."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not to be written anywhere")

    def __bool__(self) -> bool:
        return bool(self._value)


def read_token_file(path: str) -> Secret:
    """The first line of a file that nobody else can read. Raises AccessError or UnsafeError."""
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
        if mode & 0o077:
            raise UnsafeError(
                f"The token file {file} can be read by others (mode {mode & 0o777:04o}).",
                "A token that others can read is not a secret.",
                f"chmod 600 {file}",
            )
        first_line, *_ = file.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(
            f"The token file {file} cannot be read.", str(error), "Give another with --token-file."
        ) from error
    return Secret(first_line.strip())
