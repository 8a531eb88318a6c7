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
    payload = json_of(response)
    page = payload.get("verification_uri_complete") or payload.get("verification_uri")
    code, secret = payload.get("user_code"), payload.get("device_code")
    if not (isinstance(page, str) and isinstance(code, str) and isinstance(secret, str)):
        raise not_a_hub_response(response)
    if not page.startswith(("https://", "http://")):
        raise not_a_hub_response(response)
    return LoginCode(
        page=visible_line(page, 200),
        code=visible_line(code, 40),
        seconds=min(_positive(payload.get("expires_in")) or MAX_SECONDS, MAX_SECONDS),
        interval=_positive(payload.get("interval")) or INTERVAL_SECONDS,
        secret=Secret(secret),
    )


def await_token(login: LoginCode, stop: StopToken) -> Secret:
    """Wait for the login, and return its token, which stays in memory.

    Raises AccessError if the login was declined or timed out, NetworkError if the Hub could not be reached when it timed out,
    Stopped if `stop` was requested.
    """
    deadline, interval = time.monotonic() + login.seconds, login.interval
    outage: NetworkError | None = None
    while True:
        if stop.wait(min(interval, max(deadline - time.monotonic(), 0.0))):
            stop.raise_if_requested()
        if time.monotonic() >= deadline:
            raise outage or _timed_out(login)
        try:
            payload = _poll(login)
        except NetworkError as error:  # a brief outage must not end a login in progress
            outage = error
            continue
        outage = None
        if isinstance(token := payload.get("access_token"), str) and token:
            return Secret(token)
        interval += _extra_seconds(payload, login)


def _poll(login: LoginCode) -> Mapping[str, Any]:
    form = {"grant_type": _GRANT, "device_code": login.secret.reveal(), "client_id": _client_id()}
    response = send("POST", "/oauth/token", form=form)
    if response.status_code >= 500 or response.status_code in (408, 429):
        raise error_of_response(response, "Cannot poll the login")
    return {**json_of(response), "status": response.status_code}


def _extra_seconds(payload: Mapping[str, Any], login: LoginCode) -> float:
    """Seconds to add to the interval. Raises AccessError for a response that ends the login."""
    match payload.get("error"):
        case "authorization_pending":
            return 0.0
        case "slow_down":
            return SLOWER_SECONDS
        case "access_denied":
            raise AccessError("The browser login was declined.", f"Someone declined it at {login.page}.", _OTHER_WAYS)
        case "expired_token":
            raise _timed_out(login)
        case other:
            message = visible_line(f"{other or ''} {payload.get('error_description') or ''}".strip(), 200)
            raise AccessError(
                "The browser login failed.",
                f"The Hub says: {message or payload['status']}",
                _OTHER_WAYS,
            )


_OTHER_WAYS = f"Start it again, or create a token at {TOKENS_PAGE} and {HOW_TO_PASS_TOKEN}"


def _timed_out(login: LoginCode) -> AccessError:
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
            f"Run `pip install -U huggingface_hub`, or create a token at {TOKENS_PAGE} and {HOW_TO_PASS_TOKEN}",
        )
    return str(client_id)


def _positive(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 0.0
