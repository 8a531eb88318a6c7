"""The library's HTTP client, with an end to everything.

huggingface_hub 2.4 asks for information about a repository without any time limit; it gives a silent Hub six times a minute
before the download of a file begins; and it sleeps for as long as a busy Hub says, five times: with `Retry-After: 3600` a
download stands still for five hours. All of this would look like a run that hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.hub.responses import BUSY, retry_after

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

LONGEST_WAIT_SECONDS = 20.0
"""A wait that the Hub asks for and that is above this is not waited for, it is told."""
WORK_SECONDS = 300.0
"""For an answer to what makes the Hub work: the commit of an upload."""

_bounded = False


def bound_the_client() -> None:
    """Give every request of this process to the Hub, its libraries' included, a time limit. Once; call it before the first."""
    global _bounded
    if not _bounded:
        from huggingface_hub import set_client_factory

        set_client_factory(_client)
        _bounded = True


def timeout_seconds() -> float:
    """For the connection, and for every pause in an answer: the library's 10 s, or more where `HF_HUB_DOWNLOAD_TIMEOUT` or
    `HF_HUB_ETAG_TIMEOUT` says so.
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
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _limit_time],
        "response": [*hooks.get("response", []), _refuse_a_long_wait],
    }
    return client


def _limit_time(request: Request) -> None:
    """Put a limit where the caller set none, or a longer one."""
    limit = timeout_seconds() if request.method in ("GET", "HEAD") else WORK_SECONDS
    given = request.extensions.get("timeout") or {}
    limits = {phase: min(given.get(phase) or limit, limit) for phase in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def _refuse_a_long_wait(response: Response) -> None:
    """Make the library's retry end where it would sleep for long. Raises its own error, which its callers know."""
    if response.status_code in BUSY and retry_after(response) > LONGEST_WAIT_SECONDS:
        from huggingface_hub.utils import hf_raise_for_status

        hf_raise_for_status(response)
