"""Paths, moods and response bodies of the fake Hub."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from engine.push.repository import git_hash

FINE_GRAINED = (
    "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
)
PORTAL = b"<html>Please log in to the hotel's network</html>"

Answer = tuple[int, dict[str, str]]


def _gated(status: int, message: str) -> Answer:
    return status, {"X-Error-Code": "GatedRepo", "X-Error-Message": message}


_NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}

ANSWERS: dict[str, Answer] = {
    "401": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "gated": _gated(403, "Access to model a/b is restricted and you are not in the authorized list."),
    "gated, nobody": _gated(401, "Access to model a/b is restricted. You must have access to it. Please log in."),
    "awaiting": _gated(403, "Your request to access model a/b is awaiting a review from the repo authors."),
    "rejected": _gated(403, "Your request to access model a/b has been rejected by the repo's authors."),
    "fine-grained": _gated(403, FINE_GRAINED),
    "403": (403, {"X-Error-Message": "You have no \x1b[31mright\x1b[0m to."}),
    "404": (404, _NOT_FOUND),
    "private": (401, _NOT_FOUND),
    "no revision": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}),
    "429": (429, {"Retry-After": "3600"}),
    "429 briefly": (429, {"Retry-After": "0"}),
    "429 by the window": (
        429,
        {"RateLimit": '"api";r=0;t=155', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
    ),
    "503": (503, {}),
    "418": (418, {}),
}
"""By mood; "MOOD, nobody" is the response to a request without a token."""

KNOWN_MOODS = {*ANSWERS, "portal", "short"}
"""Moods that the browser login may have."""


class Share(NamedTuple):
    """The part of the body that is sent."""

    announced: float
    """The share announced in Content-Length."""
    sent: float
    then_hangs: bool = False


WHOLE = Share(1.0, 1.0)
SHARES = {"short": Share(1.0, 0.5), "smaller": Share(0.5, 0.5), "hang in the middle": Share(1.0, 0.5, then_hangs=True)}


class Resource(NamedTuple):
    """The resource that a path names."""

    kind: str
    """whoami, device, token, auth-check, info, tree, paths, file; empty for a path that the Hub does not have."""
    repo: str = ""
    revision: str = "main"
    rest: str = ""


def read_path(path: str) -> Resource:
    plain = {"/api/whoami-v2": "whoami", "/oauth/device": "device", "/oauth/token": "token"}
    if path in plain:
        return Resource(plain[path])
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) >= 4:
        repo, tail = "/".join(parts[2:4]), parts[4:]
        if not tail:
            return Resource("info", repo)
        what = {"revision": "info", "tree": "tree", "paths-info": "paths", "auth-check": "auth-check"}.get(tail[0], "")
        return Resource(what, repo, tail[1] if len(tail) > 1 else "main", "/".join(tail[2:]))
    parts = parts[1:] if parts[0] == "datasets" else parts
    if len(parts) > 4 and parts[2] == "resolve":
        return Resource("file", "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
    return Resource("")


def oid_of(data: bytes) -> str:
    return git_hash(data)


def entry_of(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": oid_of(data)}
