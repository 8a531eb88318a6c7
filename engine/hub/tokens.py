"""Find the token: passed to the run, else in the variable HF_TOKEN, else in the Hub's own store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import AccessError, NetworkError, UnsafeError
from engine.core.reading import read_file
from engine.hub.exception_mapping import as_hub_error
from engine.hub.token_file import LONGEST_TOKEN, owner_note
from engine.hub.urls import TOKENS_PAGE
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PASSED = "passed to this run"

_remembered: list[FoundToken] = []


@dataclass(frozen=True)
class FoundToken:
    secret: Secret
    source: str
    """Where it was found, in words."""


def find_token(passed: Secret | None) -> FoundToken | None:
    """The token of this run: passed to it, else from a browser login in this process, else from a variable, else from the
    Hub's own store; None if there is none.

    Raises AccessError for an invalid token.
    """
    if passed:
        return FoundToken(_checked(passed.reveal(), "the passed token"), PASSED)
    if _remembered:
        return _remembered[-1]
    for name in TOKEN_VARIABLES:
        if _variable(name):
            return FoundToken(_checked(os.environ[name], name), in_variable(name))
    from huggingface_hub import get_token

    try:
        stored = get_token()
    except Exception as error:  # refreshing an OAuth login or exchanging an OIDC token uses the network
        raise _unusable(error) from None
    if not stored:
        return None
    source = "the exchange of HF_OIDC_RESOURCE" if os.environ.get("HF_OIDC_RESOURCE") else in_store()
    return FoundToken(_checked(stored, "the stored token"), source)


def remember(found: FoundToken) -> FoundToken:
    """Remember it for this process, so that the person need not log in again for the next stage."""
    _remembered.append(found)
    return found


def other_sources(used: FoundToken) -> tuple[str, ...]:
    """Sources, in words, of tokens other than `used`."""
    return tuple(source for source, value in _all_sources() if value != used.secret.reveal())


def in_variable(name: str) -> str:
    return f"the variable {name}"


def in_store() -> str:
    return f"the login stored in {visible_line(str(store_path()))}"


def store_path() -> Path:
    """The file in which huggingface_hub stores the token of a login."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def _all_sources() -> Iterator[tuple[str, str]]:
    for name in TOKEN_VARIABLES:
        if value := _variable(name):
            yield in_variable(name), value
    try:
        stored = read_file(store_path(), LONGEST_TOKEN, follow_links=True).decode("utf-8").strip()
    except (OSError, ValueError, UnsafeError):  # missing or unreadable
        return
    if stored:
        yield in_store(), stored


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip().strip("'\"")


def _checked(value: str, what: str) -> Secret:
    value = value.strip().strip("'\"")
    if not re.fullmatch(r"[\x21-\x7e]+", value):  # httpx would quote it in its error
        raise AccessError(
            f"{what[0].upper()}{what[1:]} is not a token.",
            "It is empty, or contains spaces, line breaks or characters outside ASCII.",
            f"Copy it again from {TOKENS_PAGE}.",
        )
    return Secret(value)


def _unusable(error: Exception) -> AccessError | NetworkError:
    known = as_hub_error(error)
    if isinstance(known, NetworkError):
        return known
    return AccessError(
        f"{in_store()[0].upper()}{in_store()[1:]} is unusable.",
        f"{type(error).__name__} while reading or refreshing it{owner_note(store_path())}.",
        "Log in again with `hf auth login --force`, or pass a token with HF_TOKEN.",
    )
