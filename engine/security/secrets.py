"""A string that is never printed."""

from __future__ import annotations

from typing import NoReturn

from engine.security.redaction import register_secret

SERVER_TOKEN_VARIABLE = "STAGE3_SERVER_TOKEN"
"""The variable with the token for `--server-url`. Despite its prefix it is not an option, because options are written to disk."""
CRITIC_TOKEN_VARIABLE, JUDGE_TOKEN_VARIABLE = "STAGE3_CRITIC_TOKEN", "STAGE3_JUDGE_TOKEN"
"""The same for `--critic-url` and `--judge-url`, unless `--critic-api-key-env` or `--judge-api-key-env` names another variable."""
TOKEN_VARIABLES = frozenset({SERVER_TOKEN_VARIABLE, CRITIC_TOKEN_VARIABLE, JUDGE_TOKEN_VARIABLE})


class Secret:
    """Holds a token. `str`, `repr` and `format` are masked; it cannot be pickled, copied or written as JSON, and its value
    is masked in everything this process writes (`engine.security.redaction`).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        register_secret(value)

    def reveal(self) -> str:
        """The value itself. Each call is a place where the token may leak, so keep calls rare."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret must not be serialized")

    def __bool__(self) -> bool:
        return bool(self._value)
