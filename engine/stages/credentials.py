"""Stage 3: check the Hugging Face token, its read access and its right to push, before any download; and the rows of a local
dataset.

The token stays in memory, unless --store-token is given. The stage is skipped if the run reads nothing from the Hub, and
passes without a token if everything that the run needs is public.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

from engine import hub
from engine.core.errors import AccessError, NetworkError, Stage3Error
from engine.core.events import Check, Event, Message
from engine.hub import Account, FoundToken, GatedRepository, InvalidToken, Scope
from engine.hub.login import LOGIN_CHECK
from engine.hub.references import is_local, local_path
from engine.hub.run_requirements import HubRequirement, at_commits, hub_requirements, listed, pinned
from engine.pairs.formats.folders import has_rows
from engine.pairs.generation.prompts import read_prompts
from engine.push.errors import no_token_to_push
from engine.push.push import check_target
from engine.push.repository import Repository
from engine.run.results import CredentialsResult
from engine.security.sanitize import visible_line
from engine.security.secrets import Secret
from engine.stages.base import Context, StageEnd, StageRun

NO_TOKEN = "none: not passed, not in HF_TOKEN, no stored login"


def evidence(context: Context) -> dict[str, Any] | None:
    """None if the run needs the Hub: the token is only in memory, so every process checks it again."""
    if hub_requirements(context.config, context.run) or _repository_to_push_to(context):
        return None
    return {}


def run(context: Context) -> StageRun:
    yield from _local_rows(context)
    needs, target = hub_requirements(context.config, context.run), _repository_to_push_to(context)
    if not needs and target is None:
        reason = "Base model, adapter and dataset are local files: no token needed."
        yield Check("token", "skipped", reason)
        return StageEnd(reason, CredentialsResult(), outcome="skipped")
    hub.limit_requests()
    if hub.is_offline():
        return (yield from _offline(context, needs))
    try:
        found = hub.find_token(context.token)
    except Stage3Error as error:
        yield Check("token", "failed", f"{error.what} {error.what_to_do}")
        raise
    if found is None and context.config.device_login and (target or _needs_account(needs)):
        found = yield from _log_in(context)
    if found is None and target is not None:
        yield Check("token", "failed", NO_TOKEN)
        raise no_token_to_push()
    if found is None:
        return (yield from _without_token(context, needs))
    return (yield from _with_token(context, needs, found))


def _local_rows(context: Context) -> Iterator[Event]:
    """Read local rows now rather than after a model has been loaded. Raises ConfigError, DataError."""
    config = context.config
    place = str(config.pairs or config.dataset)
    if config.pairs is None and not (is_local(place) and has_rows(local_path(place))):
        return
    found = read_prompts(config)
    yield from found.bad.messages(place)
    good = f"{found.bad.rows - found.bad.count:,} of {found.bad.rows:,} rows"
    yield Check("prompts" if config.pairs is None else "pairs", "warning" if found.bad.count else "ok", good)


def _with_token(context: Context, needs: tuple[HubRequirement, ...], found: FoundToken) -> StageRun:
    found, account = yield from _accepted_token(context, found)
    named = f' "{account.token_name}"' if account.token_name else ""
    until = f", until {account.expires}" if account.expires else ""
    whose = f"account {account.name}, token{named} with role {account.role}{until}"
    yield Check("token", "ok", f"{found.source}: {whose}")
    if account.scope is not None:
        yield Check("scope", "ok" if account.scope.reads_gated else "warning", visible_line(str(account.scope), 400))
    commits = yield from _check_access(needs, found.secret, account.scope)
    target = _repository_to_push_to(context)
    if target is not None:  # now rather than after hours of training
        with Repository(target, found.secret, context.stop) as repository:
            yield from check_target(repository, found.source, public=context.config.push_public)
    context.token = found.secret
    yield from _clear_stale_variables(found.secret)
    if context.config.store_token:
        yield _store_token(found)
    facts = {"account": account.name, "role": account.role, "source": found.source}
    may = [f"read {listed(needs)}"] if needs else []
    may += [f"write to {target}"] if target else []
    return _result(context, f"{account.name} may {' and '.join(may)}", commits, facts)


def _accepted_token(context: Context, found: FoundToken) -> Generator[Event, None, tuple[FoundToken, Account]]:
    """A token that the Hub accepts: the one found or, with --device-login, one from a login.

    Raises InvalidToken, and the Hub's other errors.
    """
    try:
        return found, hub.whoami(found.secret)
    except Stage3Error as error:
        is_refused = isinstance(error, InvalidToken)
        known = hub.invalid_token(found.source, hub.other_sources(found)) if is_refused else error
    if not (is_refused and context.config.device_login):
        yield Check("token", "failed", f"{known.what} {known.what_to_do}")
        raise known
    yield Check("token", "warning", known.what)
    found = yield from _log_in(context)
    return found, hub.whoami(found.secret)


def _without_token(context: Context, needs: tuple[HubRequirement, ...]) -> StageRun:
    """Without a token: fine if everything is public. Raises AccessError otherwise."""
    try:
        commits = yield from _check_access(needs, None)
    except AccessError:
        yield Check("token", "failed", NO_TOKEN)
        raise
    yield Check("token", "skipped", "none, and none needed: everything the run reads is public")
    return _result(
        context, f"{listed(needs)[:1].upper()}{listed(needs)[1:]}: public, no token needed", commits, {"account": None}
    )


def _result(context: Context, summary: str, commits: dict[HubRequirement, str], facts: dict[str, Any]) -> StageEnd:
    """Pin the commits, here and in `run.json`. Raises DamagedState if a branch has moved since the run began."""
    before = context.run.results.credentials
    kept = pinned({} if before is None else before.commits, commits)
    context.config = at_commits(context.config, commits)
    return StageEnd(summary, CredentialsResult(reads=tuple(need.repo_id for need in commits), commits=kept, **facts))


def _check_access(
    needs: tuple[HubRequirement, ...], token: Secret | None, scope: Scope | None = None
) -> Generator[Event, None, dict[HubRequirement, str]]:
    """The commit of each need. Raises the Hub's error for the first that the token may not read."""
    commits = {}
    for need in needs:
        try:
            hub.check_access(need.repo_id, need.repo_type, token)
            commits[need] = hub.commit_of(need.repo_id, need.repo_type, need.revision, token)
        except Stage3Error as error:
            may_be_the_token = scope is not None and not scope.reads_gated
            known = hub.with_token_hint(error) if isinstance(error, GatedRepository) and may_be_the_token else error
            yield Check(str(need), "failed", f"{known.what} {known.what_to_do}")
            raise known from None
        who = "readable" if token else "public"
        yield Check(str(need), "ok", f"{who}; {need.revision} is {commits[need][:12]}")
        if left := hub.unfinished_bytes(need.repo_id, need.repo_type):
            yield Message("info", f"{left / 1e9:.1f} GB of interrupted downloads of {need} are in the cache.")
    return commits


def _offline(context: Context, needs: tuple[HubRequirement, ...]) -> StageRun:
    """HF_HUB_OFFLINE: the cache must have everything that the run needs."""
    missing, commits = [], {}
    if target := _repository_to_push_to(context):
        yield Check("push", "warning", f"offline: could not check whether the token may write to {target}")
    for need in needs:
        snapshot = hub.cached_snapshot(need.repo_id, need.repo_type, need.revision)
        files = hub.missing_from(snapshot, need.files) if snapshot else ()
        if snapshot is None or files:
            lacks = f"lacks {', '.join(files)}" if files else f"does not have {need.revision}"
            yield Check(str(need), "failed", f"offline, and the cache {lacks}")
            missing.append(f"{need} ({lacks.removeprefix('lacks ')})" if files else str(need))
            continue
        commits[need] = snapshot.name
        yield Check(str(need), "warning", f"offline: {snapshot.name[:12]} is in the cache; access not checked")
    if missing:
        raise hub.offline(", ".join(missing))
    return _result(context, f"Offline; {listed(needs)} from the cache", commits, {"account": None, "offline": True})


def _repository_to_push_to(context: Context) -> str | None:
    """None if nothing is to be pushed, or the push is done."""
    target = context.config.push_to_hub
    packed = context.run.results.packaging
    pushed = None if packed is None or packed.pushed is None else packed.pushed.get("repo_id")
    return target if pushed != target else None


# -- browser login -----------------------------------------------------------------------------------------------------


def _needs_account(needs: tuple[HubRequirement, ...]) -> bool:
    """Whether the Hub refuses anonymous access to any of these."""
    try:
        for need in needs:
            hub.check_access(need.repo_id, need.repo_type, None)
    except AccessError:
        return True
    return False


def _log_in(context: Context) -> Generator[Event, None, FoundToken]:
    """Show a page and a code, and wait for the person to enter it. Raises as `hub.await_token` does."""
    login = hub.request_code()
    how = f"open {login.page} in any browser, and enter the code {login.code} within {login.seconds / 60:.0f} min"
    yield Check(LOGIN_CHECK, "warning", how)
    try:
        token = hub.await_token(login, context.stop)
    except (AccessError, NetworkError) as error:
        yield Check(LOGIN_CHECK, "failed", error.what)
        raise
    yield Check(LOGIN_CHECK, "ok", "done; the token stays in memory")
    return hub.remember(FoundToken(token, "the browser login"))


# -- after the check ---------------------------------------------------------------------------------------------------


def _store_token(found: FoundToken) -> Check:
    """Store the token if --store-token is given. A failure is only a warning: the run has the token in memory."""
    try:
        place = hub.store_token(found.secret)
    except Stage3Error as error:
        return Check("stored token", "warning", f"{error.what} {error.why} {error.what_to_do}")
    return Check("stored token", "ok", f"{place}, readable only by you; `hf auth logout` removes it")


def _clear_stale_variables(used: Secret) -> Generator[Event, None, None]:
    """Drop other tokens from the environment: libraries would prefer them to the one that was checked."""
    for variable in hub.TOKEN_VARIABLES:
        value = os.environ.get(variable)
        if value is not None and value.strip().strip("'\"") != used.reveal():
            del os.environ[variable]
            text = f"{variable} holds a different token from the one in use; this process ignores it."
            yield Message("warning", text)
