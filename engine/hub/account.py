"""The account and the permissions of a token, as the Hub reports them."""

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
    """Permissions by scope ("user someone", "model owner/name", …; "everywhere" for global ones)."""

    def __str__(self) -> str:
        gated = "may read gated repositories" if self.reads_gated else "may not read gated repositories"
        return "; ".join([gated, *(f"{scope}: {', '.join(granted)}" for scope, granted in self.permissions.items())])


@dataclass(frozen=True)
class Account:
    """The account of a token."""

    name: str
    role: str
    """read, write, fineGrained; oauth after a browser login; "unknown" if the Hub does not report it."""
    token_name: str = ""
    scope: Scope | None = None
    """The scope of a fine-grained token; None for other tokens, whose permissions follow from the role."""
    expires: str = ""
    """When a browser login expires, as the Hub writes it; empty if unknown."""


def whoami(token: Secret) -> Account:
    """The token's account. Raises AccessError for a rejected token, NetworkError without a response."""
    response = get("/api/whoami-v2", token)
    if not response.is_success:
        raise error_of_response(response, "Cannot look up the token's account")
    payload = json_of(response)
    if not isinstance(payload.get("name"), str):
        raise not_a_hub_response(response)
    auth = _mapping(payload.get("auth"))
    access = _mapping(auth.get("accessToken"))
    return Account(
        name=_shown(payload["name"]),
        role=_shown(access.get("role") or auth.get("type") or "unknown"),
        token_name=_shown(access.get("displayName") or ""),
        scope=_scope(access["fineGrained"]) if isinstance(access.get("fineGrained"), dict) else None,
        expires=_shown(auth.get("expiresAt") or ""),
    )


def _scope(fine_grained: Mapping[str, Any]) -> Scope:
    permissions: dict[str, tuple[str, ...]] = {}
    if everywhere := tuple(_strings(fine_grained.get("global"))):
        permissions["everywhere"] = everywhere
    scopes = fine_grained.get("scoped")
    for scoped in scopes if isinstance(scopes, list) else []:
        entity = _mapping(_mapping(scoped).get("entity"))
        name = _shown(f"{entity.get('type') or 'something'} {entity.get('name') or entity.get('_id') or ''}".strip())
        permissions[name] = (*permissions.get(name, ()), *_strings(_mapping(scoped).get("permissions")))
    return Scope(reads_gated=fine_grained.get("canReadGatedRepos") is True, permissions=permissions)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (_shown(item) for item in value if isinstance(item, str))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    return visible_line(str(value), 100)
