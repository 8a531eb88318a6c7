"""Pages that a person opens, and repositories in addresses."""

from __future__ import annotations

import re
from typing import Literal

from engine.security.sanitize import visible_line

RepoType = Literal["model", "dataset"]

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
GATED_TOKEN_PAGE = f"{TOKENS_PAGE}/new?canReadGatedRepos=true&tokenType=fineGrained"
"""The same, with the box ticked that a fine-grained token needs for gated repositories."""
STATUS_PAGE = "https://status.huggingface.co"

_IN_API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)")
_IN_FILES = re.compile(r"://[^/]+/(datasets/)?([\w.-]+/[\w.-]+)/resolve/")


def endpoint() -> str:
    """Where the Hub is: `HF_ENDPOINT`, else the real one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def shown_endpoint() -> str:
    """The same for people: in one line, without a user's name and password."""
    return visible_line(re.sub(r"//[^/]*@", "//", endpoint()), 200)


def page_of(repo_id: str, repo_type: RepoType) -> str:
    """The address where a person accepts the licence of a repository."""
    return f"{shown_endpoint()}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def repo_in(url: str) -> tuple[str, RepoType]:
    """Repository and type in an address of the Hub; an empty name if there is none."""
    if found := _IN_API.search(url):
        return found[2], "dataset" if found[1] == "datasets" else "model"
    if found := _IN_FILES.search(url):
        return found[2], "dataset" if found[1] else "model"
    return "", "model"
