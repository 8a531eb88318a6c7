"""The account and the permissions of a token, from the Hub."""

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
    """Permissions of a fine-grained token, beyond reading public repositories."""

    reads_gated: bool
    """Public gated repositories whose licence the account has accepted."""
    permissions: Mapping[str, tuple[str, ...]]
    """By scope ("user someone", "model owner/name", …; "everywhere" for global ones)."""

    def __str__(self) -> str:
        gated = "may read gated repositories" if self.reads_gated else "may not read gated repositories"
        return "; ".join([gated, *(f"{whose}: {', '.join(may)}" for whose, may in self.permissions.items())])


@dataclass(frozen=True)
class Account:
    """The account of a token, from the Hub."""

    name: str
    role: str
    """read, write, fineGrained; oauth after a browser login; "unknown" if the Hub does not say."""
    token_name: str = ""
    scope: Scope | None = None
    """Of a fine-grained token; None for others, whose role is enough."""
    expires: str = ""
    """When a browser login expires, as the Hub writes it; empty if unknown."""


def whoami(token: Secret) -> Account:
    """The token's account. Raises AccessError for a rejected token, NetworkError without a response."""
    response = get("/api/whoami-v2", token)
    if not response.is_success:
        raise error_of_response(response, "The Hub did not identify the token")
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
