"""The library's HTTP client, with time limits.

huggingface_hub 2.4 has no timeout for repository information, waits six times a minute for a silent Hub before a download
starts, and sleeps five times for as long as a busy Hub asks: with `Retry-After: 3600` a download pauses for five hours. A
user would think that the run hangs.
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
"""If the Hub asks for a longer wait, the request fails instead."""
WORK_SECONDS = 300.0
"""Timeout of requests that take the Hub a while, such as the commit of an upload."""

_IS_FILE = "stage3_is_file"
"""Whether a request is for a file, which the library writes to disk as it arrives."""

_limited = False


def limit_requests() -> None:
    """Limit every request of this process to the Hub, including those of libraries. Call it before the first request."""
    global _limited
    if not _limited:
        from huggingface_hub import set_client_factory

        set_client_factory(_client)
        _limited = True


def timeout_seconds() -> float:
    """Limit for connecting, and for every pause in a response: the library's 10 s, or more if `HF_HUB_DOWNLOAD_TIMEOUT` or
    `HF_HUB_ETAG_TIMEOUT` is set.
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
        "response": [_limit_size, *hooks.get("response", []), _refuse_long_wait],
    }
    return client


def _limit_time(request: Request) -> None:
    """Set the limit if the caller set none or a longer one. A redirected request keeps the kind of the first one."""
    is_file = "/resolve/" in request.url.path or not str(request.url).startswith(endpoint())
    request.extensions = {_IS_FILE: is_file, **request.extensions}
    if request.method in ("GET", "HEAD"):
        failpoint("download")
    limit = timeout_seconds() if request.method in ("GET", "HEAD") else WORK_SECONDS
    requested = request.extensions.get("timeout") or {}
    limits = {phase: min(requested.get(phase) or limit, limit) for phase in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def _limit_size(response: Response) -> None:
    """Limit what the library holds in memory; files go to disk and may be of any size."""
    limit_response(response, None if response.request.extensions.get(_IS_FILE) else MAX_RESPONSE_BYTES)


def _refuse_long_wait(response: Response) -> None:
    """Raise the library's own error, which its callers handle, where it would sleep for too long before a retry."""
    if response.status_code in BUSY and retry_after(response) > MAX_WAIT_SECONDS:
        from huggingface_hub.utils import hf_raise_for_status

        hf_raise_for_status(response)
