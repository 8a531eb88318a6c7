"""Addresses: pages for people to open, and the repository that an address refers to."""

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
    """The Hub's address: `HF_ENDPOINT` if set, else the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def shown_endpoint() -> str:
    """The Hub's address for messages: in one line, without user name and password."""
    return visible_line(re.sub(r"//[^/]*@", "//", endpoint()), 200)


def page_of(repo_id: str, repo_type: RepoType) -> str:
    """The page of a repository, where a person accepts its licence."""
    return f"{shown_endpoint()}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def repo_in(url: str) -> tuple[str, RepoType]:
    """The repository and its type in an address of the Hub; an empty name if it has none."""
    if found := _IN_API.search(url):
        return found[2], "dataset" if found[1] == "datasets" else "model"
    if found := _IN_FILES.search(url):
        return found[2], "dataset" if found[1] else "model"
    return "", "model"
