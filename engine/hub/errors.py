"""The error for an unsuccessful or missing response of the Hub: what, why, what to do, and on which page.

It is derived from the response, not from the library's exception: there, GatedRepoError is a RepositoryNotFoundError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from engine.core.errors import AccessError, ConfigError, NetworkError, PreconditionError, Stage3Error
from engine.core.response_limits import is_rejected_response
from engine.hub.client import timeout_seconds
from engine.hub.responses import BUSY, is_html, message_of, retry_after
from engine.hub.urls import GATED_TOKEN_PAGE, STATUS_PAGE, TOKENS_PAGE, RepoType, page_of, shown_endpoint
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from httpx2 import Response

HOW_TO_PASS_TOKEN = (
    "pass a token with HF_TOKEN, --token-stdin, --token-file FILE, `hf auth login`, --device-login, or in the wizard "
    "(`stage3-tui`)."
)
ALLOW_GATED_REPOS = (
    f'tick "Read access to contents of all public gated repos you can access" for it at {TOKENS_PAGE}, or create one '
    f"that has it at {GATED_TOKEN_PAGE}."
)
AGAIN = "Run the same command again"
OFFLINE_HINT = "HF_HUB_OFFLINE=1 uses only the cache."


class InvalidToken(AccessError):
    """The Hub rejects the token for every request."""


class GatedRepository(AccessError):
    """The repository is gated, and the account has no access."""


def error_of_response(
    response: Response,
    what: str,
    repo_id: str = "",
    repo_type: RepoType = "model",
    *,
    revision: str = "",
    with_token: bool = False,
) -> Stage3Error:
    """The error for `response`. `what`: what failed, without a full stop.

    revision     the requested branch, tag or commit, if known
    with_token   whether a token was in use, if the request does not show it
    """
    status = response.status_code
    if status in BUSY or status >= 500:
        return busy(response)
    if is_html(response):
        return not_a_hub_response(response)
    with_token = with_token or _had_token(response)
    if with_token and status == 401 and (elsewhere := _sent_elsewhere(response)):
        return elsewhere
    code, page = response.headers.get("X-Error-Code", ""), page_of(repo_id, repo_type) if repo_id else TOKENS_PAGE
    if code == "RevisionNotFound":
        return ConfigError(
            f"The {repo_type} {repo_id} has no branch, tag or commit {visible_line(revision, 100) or 'of that name'}.",
            _reason(response),
            f"{page}/tree/main lists its branches; correct the revision.",
        )
    if code == "EntryNotFound":
        name = unquote(urlsplit(str(response.url)).path.rpartition("/resolve/")[2].partition("/")[2])
        return PreconditionError(
            f"{repo_id} on the Hub has no file {visible_line(name, 200)}.",
            "The run needs this file.",
            f"{page}/tree/main lists its files; choose another repository or revision.",
        )
    return _access_error(response, what, page, with_token)


def _access_error(response: Response, what: str, page: str, with_token: bool) -> Stage3Error:
    status, code, message = response.status_code, response.headers.get("X-Error-Code", ""), message_of(response)
    if "fine-grained" in message.lower():
        return AccessError(
            f"{what}: the fine-grained token lacks the permission.",
            f"The Hub says: {message}",
            f"{ALLOW_GATED_REPOS[0].upper()}{ALLOW_GATED_REPOS[1:]}",
        )
    if code == "GatedRepo":
        return _gated(response, what, page, with_token)
    if with_token and status == 401 and code != "RepoNotFound":
        return invalid_token()
    if status == 404 or code == "RepoNotFound" or (not with_token and status == 401):
        remedy = "or use a token of its owner." if with_token else f"and if it is private, {HOW_TO_PASS_TOKEN}"
        return AccessError(
            f"{what}: it does not exist or is private.",
            f"The Hub responds with {status} in both cases{'' if with_token else ', and you are not logged in'}.",
            f"Check the spelling at {page}, {remedy}",
        )
    if status in (401, 403):
        return AccessError(f"{what}.", _reason(response), f"See {page} and {TOKENS_PAGE}.")
    return NetworkError(
        f"{what}: the Hub responded with {status}.",
        message or "It gave no reason.",
        "Check HF_ENDPOINT and the proxy, then try again.",
    )


def _gated(response: Response, what: str, page: str, with_token: bool) -> AccessError:
    message = message_of(response)
    if not with_token:
        return AccessError(
            f"{what} without a token, and none was found.",
            "It is gated: you must accept its licence and use a token.",
            f"Accept the licence at {page}, create a token with read access at {TOKENS_PAGE}, then {HOW_TO_PASS_TOKEN}",
        )
    if "awaiting" in message.lower():
        return AccessError(
            f"{what}: the access request of the token's account is still pending.",
            f"The Hub says: {message}",
            f"Its authors decide; {page} shows the state of the request. {AGAIN} once they agree.",
        )
    if "rejected" in message.lower():
        return AccessError(
            f"{what}: its authors rejected the access request of the token's account.",
            f"The Hub says: {message}",
            f"Ask them at {page}, use a token of an account with access, or choose another model.",
        )
    return GatedRepository(
        f"{what}: the token's account has not accepted its licence.",
        f"It is gated. {_reason(response)}",
        f"Open {page} while logged in as that account, accept the licence, and run the same command again.",
    )


def invalid_token(source: str = "", others: Sequence[str] = ()) -> InvalidToken:
    """The error for a token from `source` that the Hub rejects; `others` are places with another token."""
    origin = f" ({source})" if source else ""
    other_token = f"Another one is in {' and in '.join(others)}: remove this one to use it. " if others else ""
    return InvalidToken(
        f"The Hub rejected the token{origin} (401).",
        "It is mistyped, expired or revoked.",
        f"{other_token}Create a token at {TOKENS_PAGE}, then {HOW_TO_PASS_TOKEN}",
    )


def with_token_hint(error: GatedRepository) -> AccessError:
    """The same error for a fine-grained token without gated access, because the Hub does not always report which is the cause."""
    return AccessError(
        error.what,
        f"{error.why} The token may also be the cause: it is fine-grained and may not read gated repositories.",
        f"{error.what_to_do} If you have done that, {ALLOW_GATED_REPOS}",
    )


# -- no response, or one from something else ---------------------------------------------------------------------------


def busy(response: Response) -> NetworkError:
    wait = retry_after(response)
    when, message = f"in {wait:.0f} s" if wait else "in a few minutes", message_of(response)
    if response.status_code == 429:
        return NetworkError(
            "The Hub responded with 429: too many requests.",
            message or "The rate limit is reached.",
            f"{AGAIN} {when}.",
        )
    return NetworkError(
        f"The Hub responded with {response.status_code}: it is temporarily unavailable.",
        message or "The problem is on its side.",
        f"{AGAIN} {when}. Status: {STATUS_PAGE}",
    )


def unreachable(error: BaseException) -> NetworkError:
    """The error for no response, or an interrupted one."""
    import httpx2

    where, why = f"The Hub at {shown_endpoint()}", visible_line(str(error), 300) or type(error).__name__
    if is_rejected_response(error):
        return NetworkError(
            f"{where} returned an invalid response.", f"{why}.", "Check HF_ENDPOINT and the proxy, then try again."
        )
    if isinstance(error, (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)):
        return interrupted_download(why)
    if isinstance(error, httpx2.TimeoutException):
        return NetworkError(
            f"{where} does not respond.",
            f"No data for {timeout_seconds():g} s.",
            f"{AGAIN}, and check the network and HTTPS_PROXY. HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer; {OFFLINE_HINT}",
        )
    hint = " A wrong clock makes certificates look invalid." if "CERTIFICATE" in why.upper() else ""
    return NetworkError(
        f"Cannot reach the Hub at {shown_endpoint()}.",
        f"{why}{hint}",
        f"Check the network, HTTPS_PROXY and HF_ENDPOINT; {OFFLINE_HINT}",
    )


def interrupted_download(why: str) -> NetworkError:
    return NetworkError(
        f"The connection to the Hub at {shown_endpoint()} was interrupted.",
        why,
        f"{AGAIN}: complete files are kept, the others are downloaded.",
    )


def offline(what: str = "A file that the run needs") -> NetworkError:
    return NetworkError(
        f"{what} must come from the Hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.",
        "It is not in the cache.",
        "Unset the variable, or download it on a machine with a network and copy HF_HOME.",
    )


def not_a_hub_response(response: Response | None) -> NetworkError:
    """The error if something other than the Hub responded. `response`: None if the address is unknown."""
    address = shown_endpoint() if response is None else str(response.url.copy_with(query=None, userinfo=b""))
    return NetworkError(
        f"The response from {visible_line(address, 200)} is not from the Hub.",
        "It may come from a proxy, a login page of the network, or a wrong HF_ENDPOINT.",
        "Open the address in a browser, and check HTTPS_PROXY and HF_ENDPOINT.",
    )


def _sent_elsewhere(response: Response) -> NetworkError | None:
    """The error if another host, to which no token was sent, rejected the request; None if it was the Hub."""
    if not response.history or response.url.origin == response.history[0].url.origin:
        return None
    target = f"{response.url.scheme}://{response.url.netloc.decode()}"
    return NetworkError(
        f"The Hub at {shown_endpoint()} redirects to {visible_line(target, 200)}, which requires a token.",
        "A token is sent only to the host that it is for.",
        f"If you trust that host, set HF_ENDPOINT={visible_line(target, 200)}.",
    )


def _reason(response: Response) -> str:
    message = message_of(response)
    return (
        f"The Hub says: {message}" if message else f"The Hub responded with {response.status_code} and gave no reason."
    )


def _had_token(response: Response) -> bool:
    first = response.history[0] if response.history else response
    return "authorization" in first.request.headers
