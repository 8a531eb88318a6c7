"""Which splits of the dataset the prompts come from."""

from __future__ import annotations

from engine.core.config import Stage3Config
from engine.hub.references import is_local, local_path
from engine.pairs.formats.folders import local_splits
from engine.pairs.formats.sources import files_of_splits, hub_splits, parse_split

DEFAULT_SPLIT = str(Stage3Config.model_fields["split"].default)
DEFAULT_DATASET = str(Stage3Config.model_fields["dataset"].default)


def chosen_split(config: Stage3Config, token: str | None = None) -> str:
    """The splits of `--split`. Its default suits Anthropic/hh-rlhf; of another dataset that lacks those splits, take all splits.

    Raises ConfigError for a dataset without data files, and the Hub's errors.
    """
    if config.split != DEFAULT_SPLIT or config.dataset == DEFAULT_DATASET:
        return config.split
    if is_local(config.dataset):
        available = list(local_splits(local_path(config.dataset), "--dataset"))
    else:
        available = hub_splits(config.dataset, config.dataset_revision, token)
    wanted = {term.name for term in parse_split(config.split)}
    return config.split if wanted <= set(available) else "+".join(available)


def require_local_split(config: Stage3Config) -> None:
    """Raises ConfigError if a local dataset has no such split. Checks only the names of files."""
    if is_local(config.dataset):
        files_of_splits(local_path(config.dataset), chosen_split(config), "--dataset")
