"""What may be read, and at which commit: asked before any download."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from engine.core.errors import ConfigError
from engine.hub.errors import error_of_response, not_a_hub_response
from engine.hub.requests import get, json_of
from engine.hub.urls import RepoType
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret

if TYPE_CHECKING:
    from httpx2 import Response

_REPO_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_access(repo_id: str, repo_type: RepoType, token: Secret | None) -> None:
    """Return when the files of a repository may be read, with `token` or, without, by anybody.

    Raises ConfigError for what is no repository's name, AccessError when it may not be read, NetworkError without an
    answer.
    """
    _ask(repo_id, repo_type, "auth-check", token)


def commit_of(repo_id: str, repo_type: RepoType, revision: str, token: Secret | None) -> str:
    """The commit (40 hex digits) that a branch, a tag or a commit of a repository is now. Raises as `check_access` does, and
    ConfigError for a revision that is not there.
    """
    response = _ask(repo_id, repo_type, f"revision/{quote(revision, safe='')}", token, revision)
    commit = json_of(response).get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise not_a_hub_response(response)
    return commit


def _ask(repo_id: str, repo_type: RepoType, about: str, token: Secret | None, revision: str = "") -> Response:
    if not _REPO_ID.fullmatch(repo_id):
        raise ConfigError(
            f"{visible_line(repo_id, 200)!r} is neither a path here nor a {repo_type} of the Hub.",
            "A name on the Hub is owner/name, in letters, digits, '-', '_' and '.'.",
            "Correct it, or give a path that exists.",
        )
    response = get(f"/api/{repo_type}s/{repo_id}/{about}", token)
    if not response.is_success:
        raise error_of_response(
            response, f"The {repo_type} {repo_id} may not be read", repo_id, repo_type, revision=revision
        )
    return response
