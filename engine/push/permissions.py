"""Check what a token may write, as far as the Hub reveals it before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAY_WRITE = "repo.write"
"""The permission of a fine-grained token, also needed to create a repository."""
ROLES_THAT_WRITE = ("admin", "write", "contributor")


def account_and_role(account: Mapping[str, Any]) -> str:
    """Account and role, in words."""
    return f"account {account.get('name')}, token with role {_access(account).get('role') or 'unknown'}"


def missing_permission(account: Mapping[str, Any], repo_id: str, *, exists: bool) -> str:
    """Why a token cannot write to `repo_id`, or create it; empty if it can, or if the response does not show it.

    account   the response of `whoami`
    exists    whether the repository exists; write access may be granted for it alone
    """
    owner = repo_id.partition("/")[0]
    access = _access(account)
    if access.get("role") == "read":
        return "The token only has the role read."
    if not exists and (reason := _missing_membership(account, owner)):
        return reason
    fine = access.get("fineGrained")
    if access.get("role") != "fineGrained" or not isinstance(fine, Mapping) or not isinstance(fine.get("scoped"), list):
        return ""
    writes = [scope.get("entity", {}) for scope in fine["scoped"] if MAY_WRITE in scope.get("permissions", ())]
    if any(_covers(entity, repo_id) for entity in writes):
        return ""
    where = ", ".join(str(entity.get("name")) for entity in writes) or "nowhere"
    return f"The fine-grained token may write to {where}, but not to {repo_id}."


def _covers(entity: Mapping[str, Any], repo_id: str) -> bool:
    """Whether a scope covers the repository: directly, or through its account or organisation."""
    if entity.get("type") in ("user", "org"):
        return _same(entity.get("name"), repo_id.partition("/")[0])
    return entity.get("name") is None or _same(entity.get("name"), repo_id)  # the Hub may send an id without a name


def _missing_membership(account: Mapping[str, Any], owner: str) -> str:
    """Why the account cannot create a repository of `owner`; empty if it can."""
    if _same(account.get("name"), owner):
        return ""
    orgs = {str(org.get("name")): org.get("roleInOrg") for org in account.get("orgs") or () if isinstance(org, Mapping)}
    for name, role in orgs.items():
        if _same(name, owner):
            return (
                "" if role is None or role in ROLES_THAT_WRITE else f"Its account only has the role {role} in {name}."
            )
    belongs = f", which belongs to {', '.join(orgs)}" if orgs else ""
    return f"{owner} is neither the token's account ({account.get('name')}{belongs}) nor one of its organisations."


def _access(account: Mapping[str, Any]) -> Mapping[str, Any]:
    auth = account.get("auth")
    access = auth.get("accessToken") if isinstance(auth, Mapping) else None
    return access if isinstance(access, Mapping) else {}


def _same(one: Any, other: str) -> bool:
    """Names on the Hub are case-insensitive."""
    return str(one).lower() == other.lower()
