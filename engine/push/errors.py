"""Errors of a push that a person can fix, without the token in their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import hub
from engine.core.errors import AccessError, NetworkError, Stage3Error
from engine.core.system_errors import cause_chain
from engine.hub.errors import error_of_response
from engine.hub.responses import BUSY, message_of
from engine.push.request_limits import BlockedRequest, RequestLimiter
from engine.security.redaction import redact
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

if TYPE_CHECKING:
    from httpx2 import Response

HOW_TO_GET_WRITE = (
    f"Create a token at {hub.TOKENS_PAGE} with the role write, or a fine-grained one with write access to that repository, "
    "and pass it with HF_TOKEN, --token-stdin or --token-file."
)


def no_token_to_push() -> AccessError:
    return AccessError("No token to push with.", "None was passed, and none is stored.", HOW_TO_GET_WRITE)


def push_error(error: BaseException, limiter: RequestLimiter, repo_id: str, token: Secret) -> Stage3Error | None:
    """Map an exception of huggingface_hub to our error; None if it is not about the Hub or the network."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(cause_chain(error))
    for link in chain:
        if isinstance(link, Stage3Error):  # raised by RequestLimiter in a client thread
            return link
    for link in chain:
        if isinstance(link, (HfHubHTTPError, BlockedRequest)):
            return _from_response(link.response, repo_id)
    known = hub.as_hub_error(error, token)
    if known is not None or not isinstance(error, (ValueError, LookupError, TypeError, RuntimeError)):
        return known
    if limiter.last_error_response is not None:  # the client parses some responses as JSON before checking their status
        return _from_response(limiter.last_error_response, repo_id)
    return NetworkError(
        "huggingface_hub cannot parse the Hub's response.",
        redact(visible_line(f"{type(error).__name__}: {error}", 300)),
        "It may come from a proxy or a login page of the network: check HTTPS_PROXY and HF_ENDPOINT.",
    )


def _from_response(response: Response, repo_id: str) -> Stage3Error:
    status = response.status_code
    message = message_of(response) or f"status {status}"
    path = response.request.url.path
    if status not in BUSY and not _is_from_hub(response):  # the storage for large files, reached by a signed URL
        return NetworkError(
            f"The Hub's storage rejected a file for {repo_id} ({status}).",
            f"It says: {message}",
            "The permission to upload has probably expired. Check the clock and the speed of the connection.",
        )
    if status in BUSY or status >= 500 or (status == 401 and response.headers.get("X-Error-Code") != "RepoNotFound"):
        return error_of_response(response, f"No write access to {repo_id}", repo_id, with_token=True)
    if status in (401, 402, 403):
        return AccessError(f"No write access to {repo_id}.", f"The Hub says: {message}", HOW_TO_GET_WRITE)
    if status == 404:
        return AccessError(
            f"The Hub has no {repo_id} that this token may write to.",
            f"The Hub says: {message}",
            f"Check the owner's name at {hub.page_of(repo_id, 'model')}. {HOW_TO_GET_WRITE}",
        )
    if status == 409 and path.endswith("/create") and "conflicting operation" not in message:
        return AccessError(
            f"{repo_id} exists, but this token cannot see it.",
            f"The Hub says: {message}",
            f"Grant the token read and write access to it, or push under another name. {HOW_TO_GET_WRITE}",
        )
    if status in (409, 412):
        return NetworkError(
            f"Someone else changed {repo_id} at the same time.",
            f"The Hub says: {message}",
            f"Check {hub.page_of(repo_id, 'model')}.",
        )
    return NetworkError(
        f"The Hub rejected the push to {repo_id} ({status}).",
        f"The Hub says: {message}",
        f"See {hub.page_of(repo_id, 'model')}.",
    )


def _is_from_hub(response: Response) -> bool:
    from huggingface_hub import constants

    return str(response.request.url).startswith(constants.ENDPOINT)
