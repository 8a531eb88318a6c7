"""Stage 3: the Hugging Face token, and what it may read, checked before any download.

The token is in memory only. Where nothing is read from the Hub the stage is skipped; where everybody may read
everything that the run needs, it passes without a token.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import hub
from engine.config import Stage3Config
from engine.errors import AccessError, NetworkError
from engine.events import Check, Event, Message
from engine.hub import FoundToken, RepoType
from engine.models.loading import is_local, local_path, looks_like_hub_id
from engine.run import Run
from engine.secrets import Secret
from engine.stages.base import Context, StageResult, StageRun
from engine.text import visible_line

OUTPUTS: tuple[str, ...] = ()
NAME = "credentials"


@dataclass(frozen=True)
class RemoteNeed:
    """A repository of the Hub that the run reads."""

    what: str
    """base model, adapter, dataset or reward model."""
    repo_id: str
    repo_type: RepoType

    def __str__(self) -> str:
        return f"{self.what} {visible_line(self.repo_id, 120)}"


def remote_needs(config: Stage3Config, run: Run) -> tuple[RemoteNeed, ...]:
    """What of base model, adapter, dataset and reward model comes from the Hub."""
    needs = []
    if not is_local(config.base_model_id):
        needs.append(RemoteNeed("base model", config.base_model_id, "model"))
    if _adapter_is_remote(config, run):
        needs.append(RemoteNeed("adapter", config.adapter_path, "model"))
    if not is_local(config.dataset):
        needs.append(RemoteNeed("dataset", config.dataset, "dataset"))
    if config.judge == "reward-model" and not is_local(config.reward_model_id):
        needs.append(RemoteNeed("reward model", config.reward_model_id, "model"))
    return tuple(needs)


def _adapter_is_remote(config: Stage3Config, run: Run) -> bool:
    """As `engine.models.adapters.source` looks for it: here, in the workspace, then on the Hub."""
    workspace = run.result("workspace").get("folder")
    if workspace and (Path(workspace) / config.adapter_path).is_dir():
        return False
    return not local_path(config.adapter_path).is_dir() and looks_like_hub_id(config.adapter_path)


def depends_on(context: Context) -> dict[str, Any] | None:
    """None where the Hub is needed: the token is in memory only, so every process checks it again."""
    if remote_needs(context.config, context.run):
        return None
    config = context.config
    read = ("base_model_id", "adapter_path", "dataset", "judge", "reward_model_id")
    return {option: getattr(config, option) for option in read}


def run(context: Context) -> StageRun:
    needs = remote_needs(context.config, context.run)
    if not needs:
        reason = "Base model, adapter and dataset are files here: no token is needed."
        yield Check(NAME, "token", "skipped", reason)
        return StageResult(reason, {"account": None}, outcome="skipped")
    if hub.is_offline():
        return (yield from _offline(needs))
    found = hub.find_token(context.token)
    if found is None:
        return (yield from _anonymous(needs))
    return (yield from _with_token(context, needs, found))


def _with_token(context: Context, needs: tuple[RemoteNeed, ...], found: FoundToken) -> StageRun:
    try:
        account = hub.whoami(found.secret)
    except AccessError as error:
        yield Check(NAME, "token", "failed", f"{found.source}: {error.what}")
        raise
    named = f' "{account.token_name}"' if account.token_name else ""
    yield Check(NAME, "token", "ok", f"{found.source}: account {account.name}, token{named} with role {account.role}")
    yield from _check_access(needs, found.secret)
    context.token = found.secret
    yield from _clear_stale_variables(found.secret)
    facts = {"account": account.name, "role": account.role, "source": found.source, "reads": [n.repo_id for n in needs]}
    return StageResult(f"{account.name} may read {_listed(needs)}", facts)


def _anonymous(needs: tuple[RemoteNeed, ...]) -> StageRun:
    """Without a token: fine where everybody may read everything. Raises AccessError elsewhere."""
    try:
        yield from _check_access(needs, None)
    except AccessError:
        yield Check(NAME, "token", "failed", "none: not given, not in HF_TOKEN, no login stored")
        raise
    yield Check(NAME, "token", "skipped", "none, and none is needed: everybody may read what the run needs")
    facts = {"account": None, "reads": [need.repo_id for need in needs]}
    return StageResult(f"Everybody may read {_listed(needs)}; no token is needed", facts)


def _check_access(needs: tuple[RemoteNeed, ...], token: Secret | None) -> Generator[Event, None, None]:
    for need in needs:
        try:
            hub.check_access(need.repo_id, need.repo_type, token)
        except (AccessError, NetworkError) as error:
            yield Check(NAME, str(need), "failed", error.what)
            raise
        yield Check(NAME, str(need), "ok", "may be read" if token else "may be read by everybody")


def _offline(needs: tuple[RemoteNeed, ...]) -> StageRun:
    """HF_HUB_OFFLINE: nothing can be asked; what the run needs must be in the cache."""
    missing = []
    for need in needs:
        cached = hub.is_cached(need.repo_id, need.repo_type)
        detail = (
            "offline: a copy is in the cache, access was not checked" if cached else "offline, and not in the cache"
        )
        yield Check(NAME, str(need), "warning" if cached else "failed", detail)
        if not cached:
            missing.append(need)
    if missing:
        raise NetworkError(
            f"{_listed(tuple(missing))} must come from the Hub, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids it.",
            "It is not in the cache.",
            "Unset the variable, or download first where there is a network and take HF_HOME along.",
        )
    return StageResult(f"Offline; {_listed(needs)} from the cache", {"account": None, "offline": True})


def _clear_stale_variables(used: Secret) -> Generator[Event, None, None]:
    """Drop tokens in the environment other than the one that was checked: libraries would prefer them."""
    for variable in hub.TOKEN_VARIABLES:
        value = os.environ.get(variable)
        if value is not None and value.strip().strip("'\"") != used.reveal():
            del os.environ[variable]
            text = f"{variable} held another token than the one in use; it is ignored in this process."
            yield Message("warning", text, NAME)


def _listed(needs: tuple[RemoteNeed, ...]) -> str:
    return ", ".join(str(need) for need in needs)
