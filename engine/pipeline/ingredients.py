"""What a run needs before it starts: each ingredient with its value and whether it is available, what the run will cost, and
what is missing.

Reads only this machine, and loads no model. Only `query_hub` contacts the Hub, and only about names in the options.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.core.config import Stage3Config
from engine.core.errors import AccessError, ConfigError, Stage3Error
from engine.core.layout import ADAPTER_CONFIG
from engine.core.sizes import format_size
from engine.core.stage_table import STAGES
from engine.dpo.planning.disk_space import disk_needs, model_bytes
from engine.dpo.planning.forecast import Forecast
from engine.hub.access import check_access
from engine.hub.cache import cached_snapshot, missing_from
from engine.hub.references import is_local, local_path, looks_like_hub_id
from engine.hub.run_requirements import HubRequirement, hub_requirements
from engine.hub.tokens import TOKEN_VARIABLES
from engine.pairs.generation.cost import expected_prompts, replies_per_pair
from engine.pairs.generation.splits import require_local_split
from engine.pipeline.plan import run_forecast
from engine.run.context import Context
from engine.run.folder import Run
from engine.security.secrets import Secret

Status = Literal["ready", "fetch", "gated", "missing", "decide", "open"]
"""`ready`: it is here. `fetch`: the Hub has it. `gated`: the Hub has it, but this account may not read it. `missing`: it was
not found. `decide`: a person has to decide. `open`: a later stage finds out.
"""
BLOCKING: tuple[Status, ...] = ("missing", "gated")
Access = Mapping[str, str]
"""Whether the account may read each repository: YES, or why not."""
YES = "yes"


@dataclass(frozen=True)
class Ingredient:
    title: str
    option: str
    """The main option that sets it."""
    value: str
    status: Status = "open"
    details: str = ""
    remedy: str = ""
    """What to do if it blocks the start."""


@dataclass(frozen=True)
class Costs:
    """The costs of the run, as far as they are known."""

    replies: str
    """How much has to be generated."""
    disk: Mapping[str, int] = field(default_factory=dict)
    """Bytes by purpose, including downloads."""
    free_bytes: int = 0
    """Free space on the run folder's disk."""
    weights_bytes: int | None = None
    """Size of the base model's weights, less than the memory that it needs; None if unknown."""
    forecast: Forecast | None = None
    """Preflight's."""


@dataclass(frozen=True)
class StartOverview:
    ingredients: tuple[Ingredient, ...]
    costs: Costs

    @property
    def blockers(self) -> tuple[Ingredient, ...]:
        return tuple(one for one in self.ingredients if one.status in BLOCKING)


def start_overview(
    config: Stage3Config, run: Run, *, token: Secret | None = None, access: Access | None = None
) -> StartOverview:
    """The ingredients and costs of a run. Reads files, so do not call it on the screen's thread."""
    needs = {need.what: need for need in hub_requirements(config, run)}
    disk = {name: size for need in disk_needs(config, run) for name, size in need.parts.items()}
    hub = _Hub(needs, disk, dict(access or {}), has_token=_has_token(token))
    found = (
        _base_model(config, hub),
        _adapter(config, run, hub),
        _prompts(config, hub),
        _method(config),
        _judge(config, hub),
        _training(config),
        _result(config, run),
        _push(config),
    )
    return StartOverview(found, _costs(config, run, disk))


def ingredient_values(config: Stage3Config) -> tuple[Ingredient, ...]:
    """The ingredients with their values only: nothing is read, so they can be shown at once."""
    return (
        Ingredient("Base model", "base_model_id", config.base_model_id),
        Ingredient("Adapter", "adapter_path", config.adapter_path),
        Ingredient("Prompts", *_prompts_value(config)),
        Ingredient("Method", "method", _method_value(config)),
        Ingredient("Judge", "judge", config.judge),
        Ingredient("Training", "num_train_epochs", _training_value(config)),
        Ingredient("Result", "output_dir", str(config.output_dir)),
        Ingredient("Push", "push_to_hub", config.push_to_hub or "nowhere"),
    )


def query_hub(config: Stage3Config, run: Run, token: Secret | None) -> dict[str, str]:
    """Whether this account may read what the run needs from the Hub: YES, or why not. Empty if the Hub does not respond."""
    access = {}
    for need in hub_requirements(config, run):
        try:
            check_access(need.repo_id, need.repo_type, token)
            access[need.repo_id] = YES
        except AccessError as error:
            access[need.repo_id] = error.what
        except Stage3Error:
            continue  # no network, or no such name: stage credentials reports it
    return access


# -- the ingredients ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hub:
    """What is known about the repositories that the run reads."""

    needs: Mapping[str, HubRequirement]
    disk: Mapping[str, int]
    access: Access
    has_token: bool

    def status(self, what: str) -> tuple[Status, str, str]:
        """The status of one of them, its details, and what to do."""
        need = self.needs[what]
        if _is_cached(need):
            return "ready", "in the cache", ""
        size = f"about {format_size(self.disk.get(what, 0))} to fetch"
        access = self.access.get(need.repo_id)
        if access is not None and access != YES:
            how = (
                "with your account"
                if self.has_token
                else "with an account, then enter its token in stage credentials (3)"
            )
            return "gated", f"gated; {size}", f"Request access on its page {how}."
        return "fetch", size, ""


def _is_cached(need: HubRequirement) -> bool:
    try:
        snapshot = cached_snapshot(need.repo_id, need.repo_type, need.revision)
    except OSError:
        return False
    return snapshot is not None and not missing_from(snapshot, need.files)


def _base_model(config: Stage3Config, hub: _Hub) -> Ingredient:
    title, option, name = "Base model", "base_model_id", config.base_model_id
    if "base model" in hub.needs:
        return Ingredient(title, option, name, *hub.status("base model"))
    if (local_path(name) / "config.json").is_file():
        return Ingredient(title, option, name, "ready", "found here")
    return Ingredient(title, option, name, "missing", "not found", "Choose a folder with config.json, or a Hub id.")


def _adapter(config: Stage3Config, run: Run, hub: _Hub) -> Ingredient:
    title, option, name = "Adapter", "adapter_path", config.adapter_path
    if "adapter" in hub.needs:
        return Ingredient(title, option, name, *hub.status("adapter"))
    workspace = run.result("workspace").get("folder")
    places = [local_path(name), *([Path(workspace) / name] if workspace else [])]
    if any((place / ADAPTER_CONFIG).is_file() for place in places):
        return Ingredient(title, option, name, "ready", "found here")
    if config.repo_url is not None and not workspace and not Path(name).is_absolute() and not looks_like_hub_id(name):
        return Ingredient(title, option, name, "open", "expected in the clone")
    return Ingredient(
        title, option, name, "missing", "not found", "Choose the folder or Hub id of the Stage 2 adapter."
    )


def _prompts(config: Stage3Config, hub: _Hub) -> Ingredient:
    option, value = _prompts_value(config)
    title = "Pairs" if config.pairs is not None else "Prompts"
    if "dataset" in hub.needs:
        return Ingredient(title, option, value, *hub.status("dataset"))
    if local_path(str(config.pairs or config.dataset)).exists():
        return _with_split(config, Ingredient(title, option, value, "ready", "found here"))
    return Ingredient(title, option, value, "missing", "not found", "Choose a file or folder, or a dataset's Hub id.")


def _with_split(config: Stage3Config, found: Ingredient) -> Ingredient:
    """A local dataset may lack the requested split."""
    if config.pairs is not None:
        return found
    try:
        require_local_split(config)
    except (ConfigError, OSError) as error:
        remedy = error.what_to_do if isinstance(error, ConfigError) else "Choose a readable file or folder."
        return replace(found, status="missing", details=f"no split {config.split}", remedy=remedy)
    return found


def _prompts_value(config: Stage3Config) -> tuple[str, str]:
    if config.pairs is not None:
        return "pairs", str(config.pairs)
    wanted = f"{config.target_pairs:,} usable pairs" if config.target_pairs else f"{config.num_examples:,} prompts"
    name = Path(config.dataset).name if is_local(config.dataset) else config.dataset
    return "dataset", f"{name}, {wanted}"


def _method(config: Stage3Config) -> Ingredient:
    value = _method_value(config)
    if config.pairs is not None:
        return Ingredient("Method", "pairs", "imported", "ready", "nothing is generated")
    if config.critic_url:
        return Ingredient("Method", "method", value, "open", f"critic: {config.critic_model or config.critic_url[0]}")
    if config.method == "best-of-n" and config.judge == "none":
        return Ingredient("Method", "method", value, "missing", "needs a judge", "Choose a judge, or another method.")
    return Ingredient("Method", "method", value, "ready", "")


def _method_value(config: Stage3Config) -> str:
    if config.method == "best-of-n":
        return f"best of {config.num_drafts} drafts"
    if config.method == "contrast":
        return "contrast: under a principle, and under its opposite"
    rounds = "" if config.rounds == 1 else f", {config.rounds} rounds"
    return f"critique and revision{rounds}"


def _judge(config: Stage3Config, hub: _Hub) -> Ingredient:
    match config.judge:
        case "none":
            state: tuple[Any, ...] = ("decide", "people review a sample", "")
        case "server" if not (config.judge_url or config.server_url):
            state = ("missing", "needs a server", "Set --judge-url, or choose another judge.")
        case "reward-model" if "reward model" in hub.needs:
            state = hub.status("reward model")
        case "auto":
            state = ("open", "the first that passes its exam", "")
        case _:
            state = ("open", "must pass its exam", "")
    return Ingredient("Judge", "judge", config.judge, *state)


def _training(config: Stage3Config) -> Ingredient:
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return Ingredient("Training", "num_train_epochs", _training_value(config), "ready", f"batches of {batch}")


def _training_value(config: Stage3Config) -> str:
    epochs = f"{config.num_train_epochs:g} epoch" + ("" if config.num_train_epochs == 1 else "s")
    return f"{epochs}, rate {config.learning_rate:g}, beta {config.beta:g}"


def _result(config: Stage3Config, run: Run) -> Ingredient:
    done = sum(run.stage(name).get("status") in ("done", "skipped") for name in STAGES)
    details = f"{done} of {len(STAGES)} stages are done" if done else "a new run"
    return Ingredient("Result", "output_dir", str(config.output_dir), "ready", details)


def _push(config: Stage3Config) -> Ingredient:
    if config.push_to_hub is None:
        return Ingredient("Push", "push_to_hub", "nowhere", "ready", "")
    seen = "public" if config.push_public else "private"
    return Ingredient("Push", "push_to_hub", config.push_to_hub, "open", f"{seen}; needs write access")


# -- the costs ---------------------------------------------------------------------------------------------------------


def _costs(config: Stage3Config, run: Run, disk: Mapping[str, int]) -> Costs:
    prompts = expected_prompts(config)
    replies = f"{prompts:,} prompts × {replies_per_pair(config)} answers, up to {config.max_new_tokens} tokens each"
    return Costs(
        "nothing to generate" if config.pairs is not None else replies,
        disk,
        free_bytes(run.folder),
        _weights(config),
        run_forecast(Context(config=config, run=run), prompts),
    )


def _weights(config: Stage3Config) -> int | None:
    folder = local_path(config.base_model_id)
    if is_local(config.base_model_id):
        files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
        return sum(file.stat().st_size for file in files) or None
    return model_bytes(config.base_model_id)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if os.access(place, os.F_OK))).free


def _has_token(given: Secret | None) -> bool:
    """Whether there is a token, without reading it or contacting the Hub."""
    from huggingface_hub import constants

    return (
        bool(given) or any(os.environ.get(name) for name in TOKEN_VARIABLES) or Path(constants.HF_TOKEN_PATH).exists()
    )
