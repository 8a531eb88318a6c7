"""The Hugging Face Hub: which token, whose it is, and what it may read; every refusal told apart.

Requests have a time limit and few tries (huggingface_hub's own have none of the first). Error texts are made from the
answer's status and headers, never from the request: the token is in no message, no cause and no log.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import __version__
from engine.errors import AccessError, ConfigError, NetworkError, Stage3Error
from engine.secrets import Secret
from engine.text import visible_line

if TYPE_CHECKING:
    from httpx2 import Response

RepoType = Literal["model", "dataset"]

TIMEOUT_SECONDS = 15.0
"""For the connection, and for every pause in an answer."""
RETRY_WAITS_SECONDS = (1.0, 4.0)
"""Before the second and the third try of a request that met a busy or broken Hub."""
LONGEST_WAIT_SECONDS = 20.0
"""A Retry-After above this is not waited for, it is told."""

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_REPO_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class FoundToken:
    secret: Secret
    source: str
    """Where it was found, for people."""


@dataclass(frozen=True)
class Account:
    """Whose token it is, as the Hub says."""

    name: str
    role: str
    """read, write, fineGrained; "unknown" where the Hub does not say."""
    token_name: str = ""


def find_token(given: Secret | None) -> FoundToken | None:
    """The token of this run: the one given to it, else HF_TOKEN, else the Hub's own login; None where there is none.

    Raises AccessError for one that cannot be a token.
    """
    if given:
        return FoundToken(_checked(given.reveal(), "the given token"), "given to this run")
    if os.environ.get("HF_TOKEN", "").strip():
        return FoundToken(_checked(os.environ["HF_TOKEN"], "HF_TOKEN"), "the variable HF_TOKEN")
    from huggingface_hub import constants, get_token

    try:
        stored = get_token()
    except Exception as error:  # an OAuth login is refreshed over the network, an OIDC token exchanged
        known = explained(error)
        if isinstance(known, NetworkError):
            raise known from None
        raise AccessError(
            "The stored Hugging Face login could not be used.",
            f"{type(error).__name__} while it was read or refreshed.",
            "Log in again with `hf auth login --force`, or give a token with HF_TOKEN.",
        ) from None
    if not stored:
        return None
    if os.environ.get("HUGGING_FACE_HUB_TOKEN", "").strip() == stored:
        return FoundToken(_checked(stored, "HUGGING_FACE_HUB_TOKEN"), "the variable HUGGING_FACE_HUB_TOKEN")
    place = visible_line(constants.HF_TOKEN_PATH)
    return FoundToken(_checked(stored, "the stored token"), f"the login stored in {place}")


def whoami(token: Secret) -> Account:
    """Whose token it is. Raises AccessError for one that the Hub does not take, NetworkError without an answer."""
    response = _get("/api/whoami-v2", token)
    if response.status_code == 401:
        raise _invalid_token()
    if not response.is_success:
        raise _refusal(response, "The Hub would not say whose the token is", token)
    try:
        answer = response.json()
        name = answer["name"]
    except (ValueError, KeyError, TypeError):
        raise _no_hub(response) from None
    auth = answer.get("auth")
    access = auth.get("accessToken") if isinstance(auth, dict) else None
    access = access if isinstance(access, dict) else {}
    return Account(
        name=visible_line(str(name), 100),
        role=visible_line(str(access.get("role") or "unknown"), 40),
        token_name=visible_line(str(access.get("displayName") or ""), 100),
    )


def check_access(repo_id: str, repo_type: RepoType, token: Secret | None) -> None:
    """Return when the files of a repository may be read, with `token` or, without, by anybody.

    Raises ConfigError for what is no repository's name, AccessError when it may not be read, NetworkError without an
    answer.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ConfigError(
            f"{visible_line(repo_id, 200)!r} is neither a path here nor a {repo_type} of the Hub.",
            "A name on the Hub is owner/name, in letters, digits, '-', '_' and '.'.",
            "Correct it, or give a path that exists.",
        )
    response = _get(f"/api/{repo_type}s/{repo_id}/auth-check", token)
    if not response.is_success:
        raise _refusal(response, f"The {repo_type} {repo_id} may not be read", token, repo_id, repo_type)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE was set when the process started."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def is_cached(repo_id: str, repo_type: RepoType) -> bool:
    """Whether some snapshot of a repository is in the Hub's cache; not whether it is complete."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{repo_id.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())


def page_of(repo_id: str, repo_type: RepoType) -> str:
    """The address where a person accepts the licence of a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def explained(error: BaseException, token: Secret | None = None) -> Stage3Error | None:
    """The access or network failure behind an exception of huggingface_hub, transformers, peft or datasets; else None.

    They wrap it: a busy Hub comes out as "not in the local cache", a gated repository as "can't find the config".
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, HfHubHTTPError):
            # Of what kind it is says the answer, not the class: GatedRepoError is a RepositoryNotFoundError.
            repo_id, repo_type = _repo_of(str(link.response.url))
            return _refusal(link.response, f"{repo_id or 'The Hub'} may not be read", token, repo_id, repo_type)
        if isinstance(link, OfflineModeIsEnabled):
            return _offline()
        if isinstance(link, httpx2.TransportError):
            return _unreachable(link)
    if any(isinstance(link, LocalEntryNotFoundError) for link in chain):
        return _offline() if is_offline() else _unreachable(error)
    return None


# -- requests ----------------------------------------------------------------------------------------------------------


def _get(path: str, token: Secret | None) -> Response:
    """GET from the Hub; busy answers are tried again. Raises NetworkError where no answer comes."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    # Not build_hf_headers: unless telemetry was off at import it asks the Hub for a registry first, with other limits.
    headers = {"User-Agent": f"stage3-tui/{__version__}"}
    if token:
        headers["Authorization"] = f"Bearer {token.reveal()}"
    for wait in (*RETRY_WAITS_SECONDS, None):
        try:
            response: Response = get_session().get(
                f"{constants.ENDPOINT}{path}", headers=headers, timeout=TIMEOUT_SECONDS
            )
        except OfflineModeIsEnabled:
            raise _offline() from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
            raise _unreachable(error) from None
        if response.status_code not in _BUSY or wait is None:
            return response
        wait = max(wait, _retry_after(response))
        if wait > LONGEST_WAIT_SECONDS:
            return response
        time.sleep(wait)
    raise AssertionError("the last try returns")


def _retry_after(response: Response) -> float:
    """Seconds that the Hub asks to wait; 0 where it does not say, or says a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else 0.0


def _checked(value: str, what: str) -> Secret:
    value = value.strip().strip("'\"")
    if not re.fullmatch(r"[\x21-\x7e]+", value):  # httpx would show it whole in its own error
        raise AccessError(
            f"{what[0].upper()}{what[1:]} is no token.",
            "It is empty, or holds spaces, line breaks or characters outside ASCII.",
            f"Copy it again from {TOKENS_PAGE}.",
        )
    return Secret(value)


# -- what went wrong ---------------------------------------------------------------------------------------------------


def _refusal(
    response: Response, what: str, token: Secret | None, repo_id: str = "", repo_type: RepoType = "model"
) -> Stage3Error:
    """The error behind an answer that is no success."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = _said(response, token)
    page = page_of(repo_id, repo_type) if repo_id else TOKENS_PAGE
    if status in _BUSY or status >= 500:
        return _busy(response, said)
    if "fine-grained" in said.lower():
        return AccessError(
            f"{what}: the fine-grained token does not allow it.",
            f"The Hub says: {said}",
            f'Tick "Read access to contents of all public gated repos you can access" for it at {TOKENS_PAGE}.',
        )
    if code == "GatedRepo" and token is None:
        return AccessError(
            f"{what} without a token, and there is none.",
            "It is gated: accounts accept its licence, and read it with a token.",
            f"Accept the licence at {page}, make a token with read access at {TOKENS_PAGE}, then {_HOW_TO_GIVE}",
        )
    if code == "GatedRepo":
        return AccessError(
            f"{what}: its licence is not accepted by the token's account.",
            f"It is gated, and the Hub says: {said or f'status {status}'}",
            f"Open {page} while logged in as that account, accept the licence, and start the same command again.",
        )
    if token is not None and status == 401 and code != "RepoNotFound":
        return _invalid_token()
    if status == 404 or code == "RepoNotFound" or (token is None and status == 401):
        return AccessError(
            f"{what}: it is not there, or private.",
            f"The Hub answers {status} to both{'' if token else ', and nobody is logged in'}.",
            f"Check the spelling at {page}"
            + (", or use a token of its owner." if token else f"; if private: {_HOW_TO_GIVE}"),
        )
    if status in (401, 403):
        return AccessError(f"{what}.", f"The Hub says: {said or f'status {status}'}", f"See {page} and {TOKENS_PAGE}.")
    return NetworkError(
        f"{what}: the Hub answered {status}.",
        said or "It gave no reason.",
        "Check HF_ENDPOINT and the proxy, then try again.",
    )


_HOW_TO_GIVE = (
    "give a token with HF_TOKEN, --token-stdin, --token-file FILE, `hf auth login`, or in the wizard (`stage3-tui`)."
)


def _invalid_token() -> AccessError:
    return AccessError(
        "The Hugging Face token is not accepted (401).",
        "It is mistyped, expired or revoked.",
        f"Make another at {TOKENS_PAGE}, then {_HOW_TO_GIVE}",
    )


def _busy(response: Response, said: str) -> NetworkError:
    wait = _retry_after(response)
    when = f"in {wait:.0f} s" if wait else "in a few minutes"
    if response.status_code == 429:
        return NetworkError(
            "The Hub answers 429: too many requests.",
            said or "It limits the rate.",
            f"Start the same command again {when}.",
        )
    return NetworkError(
        f"The Hub answers {response.status_code}: it does not work at the moment.",
        said or "The trouble is on its side.",
        f"Start the same command again {when}; https://status.huggingface.co tells more.",
    )


def _unreachable(error: BaseException) -> NetworkError:
    import httpx2
    from huggingface_hub import constants

    endpoint = visible_line(constants.ENDPOINT, 200)
    if isinstance(error, httpx2.TimeoutException):
        why = f"No answer within {TIMEOUT_SECONDS:.0f} s."
    else:
        why = visible_line(str(error), 300) or type(error).__name__
    hint = " A wrong clock makes certificates look invalid." if "CERTIFICATE" in why.upper() else ""
    return NetworkError(
        f"The Hub at {endpoint} cannot be reached.",
        f"{why}{hint}",
        "Check the network, HTTPS_PROXY and HF_ENDPOINT; HF_HUB_OFFLINE=1 works from the cache alone.",
    )


def _offline() -> NetworkError:
    return NetworkError(
        "The Hub is needed, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids it.",
        "Something is not in the cache.",
        "Unset the variable, or download first where there is a network and take HF_HOME along.",
    )


def _no_hub(response: Response) -> NetworkError:
    return NetworkError(
        f"{visible_line(str(response.url.copy_with(query=None, userinfo=b'')), 200)} is not the Hub's answer.",
        "It is no JSON with a name: a proxy, a login page of the network, or a wrong HF_ENDPOINT.",
        "Open the address in a browser, and check HTTPS_PROXY and HF_ENDPOINT.",
    )


def _said(response: Response, token: Secret | None) -> str:
    """The server's own words, in one line, and without the token though it should repeat it."""
    said = visible_line(response.headers.get("X-Error-Message", ""), 300)
    return said.replace(token.reveal(), "***") if token else said


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _repo_of(url: str) -> tuple[str, RepoType]:
    """Repository and type in an address of the Hub; an empty name where there is none."""
    if found := re.search(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)", url):
        return found[2], "dataset" if found[1] == "datasets" else "model"
    if found := re.search(r"://[^/]+/(datasets/)?([\w.-]+/[\w.-]+)/resolve/", url):
        return found[2], "dataset" if found[1] else "model"
    return "", "model"
