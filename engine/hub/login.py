"""The login with a browser: a page and a short code, on whatever device has a browser (RFC 8628).

The requests are those of huggingface_hub's own `hf auth login`, with its client id. That one prints, sleeps and writes the
token down; this one does none of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.core.errors import AccessError, NetworkError
from engine.hub.errors import HOW_TO_GIVE, error_of_response, not_a_hub_response
from engine.hub.requests import json_of, send
from engine.hub.urls import TOKENS_PAGE
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

LOGIN_CHECK = "browser login"
"""The name of the check that shows the page and the code, for as long as a login waits for its person."""
LONGEST_SECONDS = 900.0
"""A login is not waited for any longer, however long its code holds."""
INTERVAL_SECONDS = 5.0
"""Between two questions whether the person is done, where the Hub does not say (RFC 8628, 3.2)."""
SLOWER_SECONDS = 5.0
"""Added to that where the Hub asks to slow down (RFC 8628, 3.5)."""

_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True)
class LoginCode:
    """What a person needs, and what we need to ask for the outcome."""

    page: str
    """To open in a browser; the code may stand in it already."""
    code: str
    seconds: float
    """How long it holds."""
    interval: float
    """Seconds between two questions."""
    secret: Secret = field(repr=False)
    """The long code, which stands for this login until it is done."""


def request_code() -> LoginCode:
    """Begin a login. Raises NetworkError where the Hub does not answer, AccessError where it will not."""
    response = send("POST", "/oauth/device", form={"client_id": _client_id()})
    if not response.is_success:
        raise error_of_response(response, "A login with a browser cannot be begun")
    answer = json_of(response)
    page = answer.get("verification_uri_complete") or answer.get("verification_uri")
    code, secret = answer.get("user_code"), answer.get("device_code")
    if not (isinstance(page, str) and isinstance(code, str) and isinstance(secret, str)):
        raise not_a_hub_response(response)
    if not page.startswith(("https://", "http://")):
        raise not_a_hub_response(response)
    return LoginCode(
        page=visible_line(page, 200),
        code=visible_line(code, 40),
        seconds=min(_positive(answer.get("expires_in")) or LONGEST_SECONDS, LONGEST_SECONDS),
        interval=_positive(answer.get("interval")) or INTERVAL_SECONDS,
        secret=Secret(secret),
    )


def await_token(login: LoginCode, stop: StopToken) -> Secret:
    """The token that the person let us have; in memory only.

    Raises AccessError when they refused or the time is over, NetworkError when the Hub answered nothing but trouble for all
    of it, Stopped when `stop` was requested.
    """
    deadline, interval = time.monotonic() + login.seconds, login.interval
    trouble: NetworkError | None = None
    while True:
        if stop.wait(min(interval, max(deadline - time.monotonic(), 0.0))):
            stop.raise_if_requested()
        if time.monotonic() >= deadline:
            raise trouble or _too_late(login)
        try:
            answer = _ask(login)
        except NetworkError as error:  # a moment's trouble must not end a login that a person is at
            trouble = error
            continue
        trouble = None
        if isinstance(token := answer.get("access_token"), str) and token:
            return Secret(token)
        interval += _more_time(answer, login)


def _ask(login: LoginCode) -> Mapping[str, Any]:
    form = {"grant_type": _GRANT, "device_code": login.secret.reveal(), "client_id": _client_id()}
    response = send("POST", "/oauth/token", form=form)
    if response.status_code >= 500 or response.status_code in (408, 429):
        raise error_of_response(response, "The login cannot be asked for")
    return {**json_of(response), "status": response.status_code}


def _more_time(answer: Mapping[str, Any], login: LoginCode) -> float:
    """Seconds to add to the interval. Raises AccessError for an answer that ends the login."""
    match answer.get("error"):
        case "authorization_pending":
            return 0.0
        case "slow_down":
            return SLOWER_SECONDS
        case "access_denied":
            raise AccessError(
                "The login with a browser was refused.", f"Somebody declined it at {login.page}.", _OTHER_WAYS
            )
        case "expired_token":
            raise _too_late(login)
        case other:
            said = visible_line(f"{other or ''} {answer.get('error_description') or ''}".strip(), 200)
            raise AccessError(
                "The login with a browser failed.",
                f"The Hub says: {said or answer['status']}",
                _OTHER_WAYS,
            )


_OTHER_WAYS = f"Start it again, or make a token at {TOKENS_PAGE} and {HOW_TO_GIVE}"


def _too_late(login: LoginCode) -> AccessError:
    return AccessError(
        "The login with a browser was not finished in time.",
        f"The code {login.code} held for {login.seconds / 60:.0f} min.",
        _OTHER_WAYS,
    )


def _client_id() -> str:
    from huggingface_hub import constants

    client_id = getattr(constants, "DEVICE_CODE_OAUTH_CLIENT_ID", None)
    if not client_id:
        raise AccessError(
            "This version of huggingface_hub knows no login with a browser.",
            "It came with a later one.",
            f"`pip install -U huggingface_hub`, or make a token at {TOKENS_PAGE} and {HOW_TO_GIVE}",
        )
    return str(client_id)


def _positive(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 0.0
