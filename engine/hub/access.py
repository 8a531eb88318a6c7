"""Check read access, and resolve commits, before any download."""

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
    """Check that the files of a repository can be read with `token`, or without one if it is None.

    Raises ConfigError for an invalid repository name, AccessError without access, NetworkError without a response.
    """
    _get(repo_id, repo_type, "auth-check", token)


def commit_of(repo_id: str, repo_type: RepoType, revision: str, token: Secret | None) -> str:
    """The current commit (40 hex digits) of a branch, tag or commit. Raises as `check_access` does, and ConfigError for an
    unknown revision.
    """
    response = _get(repo_id, repo_type, f"revision/{quote(revision, safe='')}", token, revision)
    commit = json_of(response).get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise not_a_hub_response(response)
    return commit


def _get(repo_id: str, repo_type: RepoType, path: str, token: Secret | None, revision: str = "") -> Response:
    if not _REPO_ID.fullmatch(repo_id):
        raise ConfigError(
            f"{visible_line(repo_id, 200)!r} is neither a local path nor a {repo_type} on the Hub.",
            "A Hub name has the form owner/name, with letters, digits, '-', '_' and '.'.",
            "Correct the name, or pass an existing path.",
        )
    response = get(f"/api/{repo_type}s/{repo_id}/{path}", token)
    if not response.is_success:
        raise error_of_response(
            response, f"No access to the {repo_type} {repo_id}", repo_id, repo_type, revision=revision
        )
    return response
