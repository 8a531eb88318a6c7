"""Whose a token is, and what it may do: as the Hub says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.hub.errors import error_of_response, not_a_hub_response
from engine.hub.requests import get, json_of
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret


@dataclass(frozen=True)
class Scope:
    """What a fine-grained token may do beside reading what everybody may read."""

    reads_gated: bool
    """Public gated repositories whose licence its account has accepted."""
    permissions: Mapping[str, tuple[str, ...]]
    """By what they hold for ("user someone", "model owner/name", …; "everywhere" for the global ones)."""

    def __str__(self) -> str:
        gated = "may read gated repositories" if self.reads_gated else "may not read gated repositories"
        return "; ".join([gated, *(f"{whose}: {', '.join(may)}" for whose, may in self.permissions.items())])


@dataclass(frozen=True)
class Account:
    """Whose token it is, as the Hub says."""

    name: str
    role: str
    """read, write, fineGrained; oauth for a login with a browser; "unknown" where the Hub does not say."""
    token_name: str = ""
    scope: Scope | None = None
    """Of a fine-grained token; None for the others, whose role says it all."""
    expires: str = ""
    """When a login with a browser ends, as the Hub writes it; empty where it does not say."""


def whoami(token: Secret) -> Account:
    """Whose token it is. Raises AccessError for one that the Hub does not take, NetworkError without an answer."""
    response = get("/api/whoami-v2", token)
    if not response.is_success:
        raise error_of_response(response, "The Hub would not say whose the token is")
    answer = json_of(response)
    if not isinstance(answer.get("name"), str):
        raise not_a_hub_response(response)
    auth = _mapping(answer.get("auth"))
    access = _mapping(auth.get("accessToken"))
    return Account(
        name=_shown(answer["name"]),
        role=_shown(access.get("role") or auth.get("type") or "unknown"),
        token_name=_shown(access.get("displayName") or ""),
        scope=_scope(access["fineGrained"]) if isinstance(access.get("fineGrained"), dict) else None,
        expires=_shown(auth.get("expiresAt") or ""),
    )


def _scope(said: Mapping[str, Any]) -> Scope:
    permissions: dict[str, tuple[str, ...]] = {}
    if everywhere := tuple(_texts(said.get("global"))):
        permissions["everywhere"] = everywhere
    scopes = said.get("scoped")
    for scoped in scopes if isinstance(scopes, list) else []:
        entity = _mapping(_mapping(scoped).get("entity"))
        whose = _shown(f"{entity.get('type') or 'something'} {entity.get('name') or entity.get('_id') or ''}".strip())
        permissions[whose] = (*permissions.get(whose, ()), *_texts(_mapping(scoped).get("permissions")))
    return Scope(reads_gated=said.get("canReadGatedRepos") is True, permissions=permissions)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (_shown(item) for item in value if isinstance(item, str))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    return visible_line(str(value), 100)
