"""A string that does not show itself."""

from __future__ import annotations

from typing import NoReturn

from engine.security.redaction import register_secret

SERVER_TOKEN_VARIABLE = "STAGE3_SERVER_TOKEN"
"""Where the token of `--server-url` is. It begins like an option's variable, and is none: options are written down."""
CRITIC_TOKEN_VARIABLE, JUDGE_TOKEN_VARIABLE = "STAGE3_CRITIC_TOKEN", "STAGE3_JUDGE_TOKEN"
"""The same of `--critic-url` and `--judge-url`, where `--critic-api-key-env` and `--judge-api-key-env` name no other."""
TOKEN_VARIABLES = frozenset({SERVER_TOKEN_VARIABLE, CRITIC_TOKEN_VARIABLE, JUDGE_TOKEN_VARIABLE})


class Secret:
    """Holds a token. `str`, `repr` and `format` are masked; it can be neither pickled, copied nor written as JSON; and its
    value is masked in whatever this process writes (`engine.security.redaction`).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        register_secret(value)

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
