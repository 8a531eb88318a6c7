"""The library's HTTP client, with time limits.

huggingface_hub 2.4 has no timeout for repository information, waits six times a minute for a silent Hub before a download
starts, and sleeps as long as a busy Hub asks, five times: with `Retry-After: 3600` a download pauses for five hours. All of
this would look like a run that hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.failpoints import failpoint
from engine.core.response_limits import MAX_RESPONSE_BYTES, limit_response
from engine.hub.responses import BUSY, retry_after
from engine.hub.slow_responses import limit_read_rate
from engine.hub.urls import endpoint

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

MAX_WAIT_SECONDS = 20.0
"""A longer Retry-After raises instead of sleeping."""
WORK_SECONDS = 300.0
"""Timeout of requests that make the Hub work, such as the commit of an upload."""

_IS_FILE = "stage3_is_file"
"""Whether a request asks for a file, which the library writes to disk as it comes."""

_bounded = False


def limit_requests() -> None:
    """Set a time limit on every request of this process to the Hub, also by libraries. Call it once, before the first."""
    global _bounded
    if not _bounded:
        from huggingface_hub import set_client_factory

        set_client_factory(_client)
        _bounded = True


def timeout_seconds() -> float:
    """Limit for the connection, and for every pause in a response: the library's 10 s, or more by `HF_HUB_DOWNLOAD_TIMEOUT`
    or `HF_HUB_ETAG_TIMEOUT`.
    """
    from huggingface_hub import constants

    return float(max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT))


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE was set when the process started."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _client() -> Client:
    from huggingface_hub.utils._http import default_client_factory

    client: Client = default_client_factory()
    limit_read_rate(client)
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _limit_time],
        "response": [_bound, *hooks.get("response", []), _refuse_a_long_wait],
    }
    return client


def _limit_time(request: Request) -> None:
    """Set the limit if the caller set none or a longer one. What the Hub redirects to is what was asked for first."""
    is_file = "/resolve/" in request.url.path or not str(request.url).startswith(endpoint())
    request.extensions = {_IS_FILE: is_file, **request.extensions}
    if request.method in ("GET", "HEAD"):
        failpoint("download")
    limit = timeout_seconds() if request.method in ("GET", "HEAD") else WORK_SECONDS
    given = request.extensions.get("timeout") or {}
    limits = {phase: min(given.get(phase) or limit, limit) for phase in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def _bound(response: Response) -> None:
    """A file may be as long as the Hub says; what the library holds in memory may not."""
    limit_response(response, None if response.request.extensions.get(_IS_FILE) else MAX_RESPONSE_BYTES)


def _refuse_a_long_wait(response: Response) -> None:
    """End the library's retries if it would sleep for long, with its own error, which its callers handle."""
    if response.status_code in BUSY and retry_after(response) > MAX_WAIT_SECONDS:
        from huggingface_hub.utils import hf_raise_for_status

        hf_raise_for_status(response)
