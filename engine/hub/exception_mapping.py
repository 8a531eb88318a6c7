"""Find the cause behind an exception of huggingface_hub, transformers, peft or datasets.

They hide it: a busy Hub appears as "not in the local cache", a gated repository as "can't find the config", a login page as
a JSON error.
"""

from __future__ import annotations

import json
import re
from types import TracebackType

from engine.core.errors import AccessError, Stage3Error
from engine.core.system_errors import cause_chain
from engine.hub import errors as hub_errors
from engine.hub.client import is_offline
from engine.hub.urls import TOKENS_PAGE, repo_in
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

# huggingface_hub raises an OSError without errno if a file has another size than announced.
_INCOMPLETE_FILE = re.compile(r"Consistency check failed: file should be of size")
_SOCKET_ERRORS = (ConnectionResetError, ConnectionRefusedError, ConnectionAbortedError)
"""Errors of a socket that no client has wrapped."""
# hf_xet, which downloads large files, reports everything as RuntimeError.
_XET_ERROR = re.compile(
    r"CAS service error|Data processing error|Reqwest(Middleware)? Error|xet.*(timed out|refused)", re.I
)


def as_hub_error(error: BaseException, token: Secret | None = None) -> Stage3Error | None:
    """The access or network error behind an exception; None if the cause is another.

    token   the token in use, for exceptions that do not show it
    """
    chain = list(cause_chain(error))
    for link in chain:
        if known := _map_exception(link, token):
            return known
    if any(_is_missing_entry(link) for link in chain):
        return hub_errors.offline() if is_offline() else hub_errors.unreachable(error)
    return None


def _map_exception(link: BaseException, token: Secret | None) -> Stage3Error | None:
    """The error for one exception of the chain, if it is clear without the others."""
    import httpx2
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(link, HfHubHTTPError):
        return _from_response(link, token)
    if isinstance(link, OfflineModeIsEnabled):
        return hub_errors.offline()
    if isinstance(link, (httpx2.TransportError, httpx2.TooManyRedirects, *_SOCKET_ERRORS)):
        return hub_errors.unreachable(link)
    if isinstance(link, FileMetadataError) or (
        isinstance(link, (json.JSONDecodeError, RecursionError)) and _was_raised_by_the_client(link)
    ):
        return hub_errors.not_a_hub_response(None)
    if isinstance(link, OSError) and _INCOMPLETE_FILE.search(str(link)):
        return hub_errors.interrupted_download(visible_line(str(link), 200))
    if isinstance(link, RuntimeError) and _XET_ERROR.search(str(link)):
        return hub_errors.interrupted_download(visible_line(str(link), 200))
    if type(link).__name__ == "DatasetNotFoundError":  # from datasets: it hides its cause, and is slow to import
        return AccessError(
            "No access to the dataset: it is gated, private or does not exist.",
            visible_line(str(link), 300),
            f"Open its page, accept its conditions while logged in, and check the token's permissions at {TOKENS_PAGE}.",
        )
    return None


def _from_response(link: BaseException, token: Secret | None) -> Stage3Error:
    response = link.response  # type: ignore[attr-defined]
    repo_id, repo_type = repo_in(str((response.history or [response])[0].url))
    what = f"No access to the {repo_type} {repo_id}" if repo_id else "The Hub rejected the request"
    return hub_errors.error_of_response(response, what, repo_id, repo_type, with_token=token is not None)


def _is_missing_entry(link: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(link, LocalEntryNotFoundError)


def _was_raised_by_the_client(error: BaseException) -> bool:
    """Whether the library failed to parse a response, as opposed to one of our own files."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("huggingface_hub."):
            return True
        trace = trace.tb_next
    return False
