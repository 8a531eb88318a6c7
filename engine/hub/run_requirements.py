"""What a run reads from the Hub, and at which commits.

Branches move. `run.json` records the commits at the first start of the run, and later starts load the same ones. If a branch
has moved by then, the person decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import DamagedState
from engine.core.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.hub import RepoType
from engine.hub.references import is_local, local_path, looks_like_hub_id
from engine.run.folder import Run
from engine.security.sanitize import visible_line

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_MODEL_FILES = (("config.json",), _TOKENIZER, _WEIGHTS)
_ADAPTER_FILES = ((ADAPTER_CONFIG,), (ADAPTER_WEIGHTS,))


@dataclass(frozen=True)
class HubRequirement:
    """A repository on the Hub that the run reads."""

    what: str
    """base model, adapter, dataset or reward model."""
    repo_id: str
    repo_type: RepoType
    revision: str = "main"
    revision_option: str = ""
    """The configuration field that holds its revision; if empty, there is none and the repository is not pinned."""
    files: tuple[tuple[str, ...], ...] = ()
    """The files that the run reads, each as a tuple of its possible names."""

    def __str__(self) -> str:
        return f"{self.what} {visible_line(self.repo_id, 120)}"


def hub_requirements(config: Stage3Config, run: Run) -> tuple[HubRequirement, ...]:
    """Which of base model, adapter, dataset and reward model come from the Hub."""
    needs = []
    if not is_local(config.base_model_id):
        revision = config.base_model_revision
        needs.append(
            HubRequirement("base model", config.base_model_id, "model", revision, "base_model_revision", _MODEL_FILES)
        )
    if _adapter_is_remote(config, run):
        revision = config.adapter_revision
        needs.append(
            HubRequirement("adapter", config.adapter_path, "model", revision, "adapter_revision", _ADAPTER_FILES)
        )
    if config.pairs is None and not is_local(config.dataset):
        needs.append(HubRequirement("dataset", config.dataset, "dataset", config.dataset_revision, "dataset_revision"))
    if config.judge == "reward-model" and not is_local(config.reward_model_id):
        needs.append(HubRequirement("reward model", config.reward_model_id, "model", files=_MODEL_FILES))
    return tuple(needs)


def _adapter_is_remote(config: Stage3Config, run: Run) -> bool:
    """Searched as in `engine.models.adapters.source`: a local path, the workspace, then the Hub."""
    workspace = run.result("workspace").get("folder")
    if workspace and (Path(workspace) / config.adapter_path).is_dir():
        return False
    return not local_path(config.adapter_path).is_dir() and looks_like_hub_id(config.adapter_path)


def listed(needs: Iterable[HubRequirement]) -> str:
    return ", ".join(str(need) for need in needs)


# -- commits -----------------------------------------------------------------------------------------------------------


def pinned(recorded: Mapping[str, Any], commits: Mapping[HubRequirement, str]) -> dict[str, dict[str, Any]]:
    """The record of `commits` for `run.json`, by `what`: `repo`, `commit`, and `revisions`, all names that were used for it.

    `recorded` comes from an earlier start of the run. Raises DamagedState if one of its revisions now points to another commit;
    a new revision is the person's choice.
    """
    kept = {}
    for need, commit in commits.items():
        before = recorded.get(need.what) or {}
        same_repo = before.get("repo") == need.repo_id
        if same_repo and need.revision_option and before["commit"] != commit and need.revision in before["revisions"]:
            raise _moved(need, before["commit"], commit)
        names = before["revisions"] if same_repo and before["commit"] == commit else []
        kept[need.what] = {
            "repo": need.repo_id,
            "commit": commit,
            "revisions": list(dict.fromkeys([*names, need.revision])),
        }
    return kept


def at_commits(config: Stage3Config, commits: Mapping[HubRequirement, str]) -> Stage3Config:
    """The configuration with these commits as revisions."""
    revisions = {need.revision_option: commit for need, commit in commits.items() if need.revision_option}
    return config.model_copy(update=revisions)


def at_recorded_commits(config: Stage3Config, run: Run) -> Stage3Config:
    """The configuration with the commits that an earlier start recorded, without a request to the Hub."""
    credentials = run.results.credentials
    recorded = {} if credentials is None else credentials.commits
    found = {}
    for need in hub_requirements(config, run):
        pin = recorded.get(need.what) or {}
        if pin.get("repo") == need.repo_id and need.revision in pin.get("revisions", ()):
            found[need] = str(pin["commit"])
    return at_commits(config, found)


def _moved(need: HubRequirement, before: str, now: str) -> DamagedState:
    flag = "--" + need.revision_option.replace("_", "-")
    return DamagedState(
        f"The {need} has changed since this run began: {visible_line(need.revision, 80)} was {before[:12]} and is now "
        f"{now[:12]}.",
        "The run's results so far come from the old commit.",
        f"Keep the old one with {flag} {before}, or switch to the new one with --from credentials.",
    )
