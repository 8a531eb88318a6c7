"""Requests to the Hub: through the library's client, with time limits and few retries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine import __version__
from engine.core.nesting import parse_untrusted_json
from engine.hub.client import MAX_WAIT_SECONDS, limit_requests
from engine.hub.errors import not_a_hub_response, offline, unreachable
from engine.hub.responses import BUSY, is_html, retry_after
from engine.hub.urls import endpoint
from engine.security.secrets import Secret

if TYPE_CHECKING:
    from httpx2 import Response

RETRY_WAITS_SECONDS = (1.0, 4.0)
"""Seconds before the second and third try of a request."""


def get(path: str, token: Secret | None) -> Response:
    """GET from the Hub, and retry while it is busy. Raises NetworkError without a response from the Hub."""
    for wait in (*RETRY_WAITS_SECONDS, None):
        response = send("GET", path, token)
        if response.status_code not in BUSY or wait is None:
            break
        wait = max(wait, retry_after(response))
        if wait > MAX_WAIT_SECONDS:
            break
        time.sleep(wait)
    if response.is_success and is_html(response):
        raise not_a_hub_response(response)
    return response


def send(method: str, path: str, token: Secret | None = None, form: Mapping[str, str] | None = None) -> Response:
    """One request and its response, whatever its status. Raises NetworkError without one."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    limit_requests()
    # Not build_hf_headers: it may first request a registry from the Hub, without our limits.
    headers = {"User-Agent": f"stage3-tui/{__version__}"}
    if token:
        headers["Authorization"] = f"Bearer {token.reveal()}"
    try:
        return get_session().request(method, f"{endpoint()}{path}", headers=headers, data=form)  # type: ignore[no-any-return]
    except OfflineModeIsEnabled:
        raise offline() from None
    except HfHubHTTPError as error:  # the Hub asked for a longer wait than we allow
        return error.response  # type: ignore[no-any-return]
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        raise unreachable(error) from None


def json_of(response: Response) -> dict[str, Any]:
    """The JSON object of a response. Raises NetworkError if it is not one: something else responded."""
    try:
        payload = parse_untrusted_json(response.content)
    except ValueError:
        raise not_a_hub_response(response) from None
    if not isinstance(payload, dict):
        raise not_a_hub_response(response)
    return payload
