"""Find the cause behind an exception of huggingface_hub, transformers, peft or datasets.

They wrap it: a busy Hub appears as "not in the local cache", a gated repository as "can't find the config", a login page as
a JSON error.
"""

from __future__ import annotations

import json
import re
from types import TracebackType

from engine.core.errors import AccessError, Stage3Error
from engine.core.system_errors import chain_of
from engine.hub import errors as refusals
from engine.hub.client import is_offline
from engine.hub.urls import TOKENS_PAGE, repo_in
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

# A file has another size than announced: huggingface_hub raises an OSError without errno.
_NOT_WHOLE = re.compile(r"Consistency check failed: file should be of size")
_BROKEN = (ConnectionResetError, ConnectionRefusedError, ConnectionAbortedError)
"""Of a socket, as they come where no client wraps them."""
# hf_xet, which downloads large files, reports everything as RuntimeError.
_OF_XET = re.compile(
    r"CAS service error|Data processing error|Reqwest(Middleware)? Error|xet.*(timed out|refused)", re.I
)


def as_hub_error(error: BaseException, token: Secret | None = None) -> Stage3Error | None:
    """The access or network error behind an exception; None for other causes.

    token   the token in use, for exceptions that do not show it
    """
    chain = list(chain_of(error))
    for link in chain:
        if known := _explained_alone(link, token):
            return known
    if any(_is_missing_entry(link) for link in chain):
        return refusals.offline() if is_offline() else refusals.unreachable(error)
    return None


def _explained_alone(link: BaseException, token: Secret | None) -> Stage3Error | None:
    import httpx2
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(link, HfHubHTTPError):
        return _of_answer(link, token)
    if isinstance(link, OfflineModeIsEnabled):
        return refusals.offline()
    if isinstance(link, (httpx2.TransportError, httpx2.TooManyRedirects, *_BROKEN)):
        return refusals.unreachable(link)
    if isinstance(link, FileMetadataError) or (
        isinstance(link, (json.JSONDecodeError, RecursionError)) and _was_raised_by_the_client(link)
    ):
        return refusals.not_a_hub_response(None)
    if isinstance(link, OSError) and _NOT_WHOLE.search(str(link)):
        return refusals.interrupted_download(visible_line(str(link), 200))
    if isinstance(link, RuntimeError) and _OF_XET.search(str(link)):
        return refusals.interrupted_download(visible_line(str(link), 200))
    if type(link).__name__ == "DatasetNotFoundError":  # of datasets; it hides its cause, and importing it takes long
        return AccessError(
            "No access to the dataset: it is gated, private or does not exist.",
            visible_line(str(link), 300),
            f"Open its page, accept its conditions while logged in, and check the token's permissions at {TOKENS_PAGE}.",
        )
    return None


def _of_answer(link: BaseException, token: Secret | None) -> Stage3Error:
    response = link.response  # type: ignore[attr-defined]
    repo_id, repo_type = repo_in(str((response.history or [response])[0].url))
    what = f"No access to the {repo_type} {repo_id}" if repo_id else "The Hub rejected the request"
    return refusals.error_of_response(response, what, repo_id, repo_type, with_token=token is not None)


def _is_missing_entry(link: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(link, LocalEntryNotFoundError)


def _was_raised_by_the_client(error: BaseException) -> bool:
    """Whether the library was reading a response, not JSON of our own files."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("huggingface_hub."):
            return True
        trace = trace.tb_next
    return False
