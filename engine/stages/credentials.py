"""Stage 3: the Hugging Face token, what it may read, and whether it may push, checked before any download; and the rows of
a dataset that is here.

The token is in memory only, unless --store-token asks for more. Where nothing is read from the Hub the stage is skipped;
where everybody may read everything that the run needs, it passes without a token.
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

NO_TOKEN = "none: not given, not in HF_TOKEN, no login stored"


def evidence(context: Context) -> dict[str, Any] | None:
    """None where the Hub is needed: the token is in memory only, so every process checks it again."""
    if hub_requirements(context.config, context.run) or _repository_to_push_to(context):
        return None
    return {}


def run(context: Context) -> StageRun:
    yield from _local_rows(context)
    needs, target = hub_requirements(context.config, context.run), _repository_to_push_to(context)
    if not needs and target is None:
        reason = "Base model, adapter and dataset are files here: no token is needed."
        yield Check("token", "skipped", reason)
        return StageEnd(reason, CredentialsResult(), outcome="skipped")
    hub.bound_the_client()
    if hub.is_offline():
        return (yield from _offline(context, needs))
    try:
        found = hub.find_token(context.token)
    except Stage3Error as error:
        yield Check("token", "failed", f"{error.what} {error.what_to_do}")
        raise
    if found is None and context.config.device_login and (target or _strangers_are_refused(needs)):
        found = yield from _log_in(context)
    if found is None and target is not None:
        yield Check("token", "failed", NO_TOKEN)
        raise no_token_to_push()
    if found is None:
        return (yield from _anonymous(context, needs))
    return (yield from _with_token(context, needs, found))


def _local_rows(context: Context) -> Iterator[Event]:
    """Read what is on this machine now, and not after a model was loaded. Raises ConfigError, DataError."""
    config = context.config
    place = str(config.pairs or config.dataset)
    if config.pairs is None and not (is_local(place) and has_rows(local_path(place))):
        return
    found = read_prompts(config)
    yield from found.bad.messages(place)
    good = f"{found.bad.rows - found.bad.count:,} of {found.bad.rows:,} rows"
    yield Check("prompts" if config.pairs is None else "pairs", "warning" if found.bad.count else "ok", good)


def _with_token(context: Context, needs: tuple[HubRequirement, ...], found: FoundToken) -> StageRun:
    found, account = yield from _accepted(context, found)
    named = f' "{account.token_name}"' if account.token_name else ""
    until = f", until {account.expires}" if account.expires else ""
    whose = f"account {account.name}, token{named} with role {account.role}{until}"
    yield Check("token", "ok", f"{found.source}: {whose}")
    if account.scope is not None:
        yield Check("scope", "ok" if account.scope.reads_gated else "warning", visible_line(str(account.scope), 400))
    commits = yield from _check_access(needs, found.secret, account.scope)
    target = _repository_to_push_to(context)
    if target is not None:  # now, and not after hours of training
        with Repository(target, found.secret, context.stop) as repository:
            yield from check_target(repository, found.source, public=context.config.push_public)
    context.token = found.secret
    yield from _clear_stale_variables(found.secret)
    if context.config.store_token:
        yield _stored(found)
    facts = {"account": account.name, "role": account.role, "source": found.source}
    may = [f"read {listed(needs)}"] if needs else []
    may += [f"write to {target}"] if target else []
    return _result(context, f"{account.name} may {' and '.join(may)}", commits, facts)


def _accepted(context: Context, found: FoundToken) -> Generator[Event, None, tuple[FoundToken, Account]]:
    """A token that the Hub takes: the one found, or, where the person wants that, one of a login.

    Raises InvalidToken, and what else the Hub says.
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


def _anonymous(context: Context, needs: tuple[HubRequirement, ...]) -> StageRun:
    """Without a token: fine where everybody may read everything. Raises AccessError elsewhere."""
    try:
        commits = yield from _check_access(needs, None)
    except AccessError:
        yield Check("token", "failed", NO_TOKEN)
        raise
    yield Check("token", "skipped", "none, and none is needed: everybody may read what the run needs")
    return _result(context, f"Everybody may read {listed(needs)}; no token is needed", commits, {"account": None})


def _result(context: Context, summary: str, commits: dict[HubRequirement, str], facts: dict[str, Any]) -> StageEnd:
    """Hold the commits, here and in `run.json`. Raises DamagedState where one has moved since the run began."""
    before = context.run.results.credentials
    kept = pinned({} if before is None else before.commits, commits)
    context.config = at_commits(context.config, commits)
    return StageEnd(summary, CredentialsResult(reads=tuple(need.repo_id for need in commits), commits=kept, **facts))


def _check_access(
    needs: tuple[HubRequirement, ...], token: Secret | None, scope: Scope | None = None
) -> Generator[Event, None, dict[HubRequirement, str]]:
    """The commit of each need. Raises what the Hub says against the first that may not be read."""
    commits = {}
    for need in needs:
        try:
            hub.check_access(need.repo_id, need.repo_type, token)
            commits[need] = hub.commit_of(need.repo_id, need.repo_type, need.revision, token)
        except Stage3Error as error:
            may_be_the_token = scope is not None and not scope.reads_gated
            known = hub.or_the_token(error) if isinstance(error, GatedRepository) and may_be_the_token else error
            yield Check(str(need), "failed", f"{known.what} {known.what_to_do}")
            raise known from None
        who = "may be read" if token else "may be read by everybody"
        yield Check(str(need), "ok", f"{who}; {need.revision} is {commits[need][:12]}")
        if left := hub.unfinished_bytes(need.repo_id, need.repo_type):
            yield Message("info", f"{left / 1e9:.1f} GB of downloads of {need} that broke off lie in the cache.")
    return commits


def _offline(context: Context, needs: tuple[HubRequirement, ...]) -> StageRun:
    """HF_HUB_OFFLINE: nothing can be asked; what the run needs must be in the cache."""
    missing, commits = [], {}
    if target := _repository_to_push_to(context):
        yield Check("push", "warning", f"offline: whether the token may write to {target} was not asked")
    for need in needs:
        snapshot = hub.cached_snapshot(need.repo_id, need.repo_type, need.revision)
        files = hub.missing_from(snapshot, need.files) if snapshot else ()
        if snapshot is None or files:
            lacks = f"lacks {', '.join(files)}" if files else f"has no {need.revision} of it"
            yield Check(str(need), "failed", f"offline, and the cache {lacks}")
            missing.append(f"{need} ({lacks.removeprefix('lacks ')})" if files else str(need))
            continue
        commits[need] = snapshot.name
        yield Check(str(need), "warning", f"offline: {snapshot.name[:12]} is in the cache, access was not checked")
    if missing:
        raise hub.offline(", ".join(missing))
    return _result(context, f"Offline; {listed(needs)} from the cache", commits, {"account": None, "offline": True})


def _repository_to_push_to(context: Context) -> str | None:
    """None where nothing is to be pushed, or nothing any more."""
    target = context.config.push_to_hub
    packed = context.run.results.packaging
    pushed = None if packed is None or packed.pushed is None else packed.pushed.get("repo_id")
    return target if pushed != target else None


# -- the login with a browser ------------------------------------------------------------------------------------------


def _strangers_are_refused(needs: tuple[HubRequirement, ...]) -> bool:
    try:
        for need in needs:
            hub.check_access(need.repo_id, need.repo_type, None)
    except AccessError:
        return True
    return False


def _log_in(context: Context) -> Generator[Event, None, FoundToken]:
    """Show a page and a code, and wait until the person has been there. Raises as `hub.await_token` does."""
    login = hub.request_code()
    how = f"open {login.page} in any browser, and enter the code {login.code} within {login.seconds / 60:.0f} min"
    yield Check(LOGIN_CHECK, "warning", how)
    try:
        token = hub.await_token(login, context.stop)
    except (AccessError, NetworkError) as error:
        yield Check(LOGIN_CHECK, "failed", error.what)
        raise
    yield Check(LOGIN_CHECK, "ok", "done; the token is in memory")
    return hub.remember(FoundToken(token, "the login with a browser"))


# -- what becomes of tokens --------------------------------------------------------------------------------------------


def _stored(found: FoundToken) -> Check:
    """Store it where that was asked for. A run that has its token in memory goes on without, and says why."""
    try:
        place = hub.store_token(found.secret)
    except Stage3Error as error:
        return Check("stored token", "warning", f"{error.what} {error.why} {error.what_to_do}")
    return Check("stored token", "ok", f"{place}, readable by you alone; `hf auth logout` removes it")


def _clear_stale_variables(used: Secret) -> Generator[Event, None, None]:
    """Drop tokens in the environment other than the one that was checked: libraries would prefer them."""
    for variable in hub.TOKEN_VARIABLES:
        value = os.environ.get(variable)
        if value is not None and value.strip().strip("'\"") != used.reveal():
            del os.environ[variable]
            text = f"{variable} held another token than the one in use; it is ignored in this process."
            yield Message("warning", text)
