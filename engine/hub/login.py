"""Browser login: a page and a short code, for a browser on any device (RFC 8628).

Same requests and client id as huggingface_hub's `hf auth login`, but without printing, sleeping or storing the token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.core.errors import AccessError, NetworkError
from engine.hub.errors import HOW_TO_PASS_TOKEN, error_of_response, not_a_hub_response
from engine.hub.requests import json_of, send
from engine.hub.urls import TOKENS_PAGE
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

LOGIN_CHECK = "browser login"
"""Name of the check that shows page and code while a login waits."""
MAX_SECONDS = 900.0
"""Longest wait for a login, even if its code is valid for longer."""
INTERVAL_SECONDS = 5.0
"""Polling interval if the Hub gives none (RFC 8628, 3.2)."""
SLOWER_SECONDS = 5.0
"""Added to the interval when the Hub asks to slow down (RFC 8628, 3.5)."""

_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True)
class LoginCode:
    """What the person needs, and what we need to poll for the result."""

    page: str
    """Page to open in a browser; it may contain the code."""
    code: str
    seconds: float
    """How long the code is valid."""
    interval: float
    """Polling interval in seconds."""
    secret: Secret = field(repr=False)
    """The long code that identifies this login while polling."""


def request_code() -> LoginCode:
    """Start a login. Raises NetworkError without a response, AccessError if the Hub rejects it."""
    response = send("POST", "/oauth/device", form={"client_id": _client_id()})
    if not response.is_success:
        raise error_of_response(response, "Cannot start a browser login")
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
        seconds=min(_positive(answer.get("expires_in")) or MAX_SECONDS, MAX_SECONDS),
        interval=_positive(answer.get("interval")) or INTERVAL_SECONDS,
        secret=Secret(secret),
    )


def await_token(login: LoginCode, stop: StopToken) -> Secret:
    """The token from the login; in memory only.

    Raises AccessError if it was declined or timed out, NetworkError if the Hub gave only errors the whole time, Stopped if
    `stop` was requested.
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
        except NetworkError as error:  # a brief outage must not end a login in progress
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
        raise error_of_response(response, "Cannot poll the login")
    return {**json_of(response), "status": response.status_code}


def _more_time(answer: Mapping[str, Any], login: LoginCode) -> float:
    """Seconds to add to the interval. Raises AccessError for a response that ends the login."""
    match answer.get("error"):
        case "authorization_pending":
            return 0.0
        case "slow_down":
            return SLOWER_SECONDS
        case "access_denied":
            raise AccessError("The browser login was declined.", f"Someone declined it at {login.page}.", _OTHER_WAYS)
        case "expired_token":
            raise _too_late(login)
        case other:
            said = visible_line(f"{other or ''} {answer.get('error_description') or ''}".strip(), 200)
            raise AccessError(
                "The browser login failed.",
                f"The Hub says: {said or answer['status']}",
                _OTHER_WAYS,
            )


_OTHER_WAYS = f"Start it again, or create a token at {TOKENS_PAGE} and {HOW_TO_PASS_TOKEN}"


def _too_late(login: LoginCode) -> AccessError:
    return AccessError(
        "The browser login timed out.",
        f"The code {login.code} was valid for {login.seconds / 60:.0f} min.",
        _OTHER_WAYS,
    )


def _client_id() -> str:
    from huggingface_hub import constants

    client_id = getattr(constants, "DEVICE_CODE_OAUTH_CLIENT_ID", None)
    if not client_id:
        raise AccessError(
            "This version of huggingface_hub has no browser login.",
            "A later version added it.",
            f"`pip install -U huggingface_hub`, or create a token at {TOKENS_PAGE} and {HOW_TO_PASS_TOKEN}",
        )
    return str(client_id)


def _positive(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 0.0
