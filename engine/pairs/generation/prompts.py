"""Load prompts: the conversations before the last assistant turn, from splits of a local or Hub dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from engine.core.config import Stage3Config
from engine.hub.references import is_local, local_path
from engine.models.chat import Conversation
from engine.pairs.formats.containers import NumberedRow
from engine.pairs.formats.imported import read_imported_pairs
from engine.pairs.formats.reading import BadRows, RowReader, prompt_of
from engine.pairs.formats.sources import hub_rows, parse_split, rows_of_splits
from engine.pairs.generation.splits import chosen_split
from engine.storage.jsonl import BadLine


@dataclass(frozen=True)
class Prompt:
    id: str
    """A hash of the conversation and its source: a row has the same id in every run."""
    messages: Conversation
    """The conversation before the answer; its last message is the user's."""

    @property
    def text(self) -> str:
        """The user's last message: the notebook's `prompt`."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class PromptSet:
    prompts: list[Prompt]
    """Shuffled by `--seed`, without duplicates, at most `--num-examples`; all of them with `--target-pairs`."""
    bad: BadRows
    """The rows that are not prompts."""
    split: str = ""
    """The splits that were read; empty for imported pairs."""


def load_prompts(config: Stage3Config, token: str | None = None) -> list[Prompt]:
    """The prompts of `--dataset` and `--split` (see `read_prompts`)."""
    return read_prompts(config, token).prompts


def read_prompts(config: Stage3Config, token: str | None = None) -> PromptSet:
    """The prompts of `--dataset` and `--split`. Counts and skips rows that are not prompts.

    Raises ConfigError for a split or file that cannot be read, DataError if the share of bad rows exceeds `--max-bad-rows`,
    and NetworkError if the Hub does not respond.
    """
    reader = RowReader.of(config)
    if config.pairs is not None:
        return prompts_from_pairs(config)
    parse_split(config.split)
    by_id: dict[str, Prompt] = {}
    bad, split = BadRows("prompt"), chosen_split(config, token)
    for number, row in _rows(config, split, token):
        bad.rows += 1
        messages = row if isinstance(row, BadLine) else prompt_of(number, row, reader)
        if isinstance(messages, BadLine):
            bad.add(messages)
            continue
        prompt = Prompt(prompt_id(messages, _source_name(config)), messages)
        by_id.setdefault(prompt.id, prompt)
    bad.raise_if_too_many(f"{config.dataset} ({split})", config.max_bad_rows)
    prompts = list(by_id.values())
    Random(config.seed).shuffle(prompts)
    return PromptSet(prompts if config.target_pairs else prompts[: config.num_examples], bad, split)


def prompts_from_pairs(config: Stage3Config) -> PromptSet:
    """All prompts of `--pairs`, in order, for stages that need some before the pairs are imported.

    Raises what `read_imported_pairs` raises.
    """
    bad = BadRows("pair")
    by_id: dict[str, Prompt] = {}
    for pair in read_imported_pairs(config, bad):
        prompt = Prompt(prompt_id(pair.messages, ""), pair.messages)
        by_id.setdefault(prompt.id, prompt)
    return PromptSet(list(by_id.values()), bad)


def pairs_wanted(config: Stage3Config) -> int:
    """How many pairs the run will have: `--num-examples`, or the number of pairs in `--pairs`."""
    if config.pairs is None:
        return config.num_examples
    return sum(1 for _ in read_imported_pairs(config, BadRows("pair")))


def prompt_id(messages: Conversation, source: str) -> str:
    text = json.dumps([source, [[m["role"], m["content"]] for m in messages]], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows(config: Stage3Config, split: str, token: str | None) -> Iterator[NumberedRow]:
    if is_local(config.dataset):
        return rows_of_splits(local_path(config.dataset), split, "--dataset")
    return hub_rows(config.dataset, split, config.dataset_revision, token)


def _source_name(config: Stage3Config) -> str:
    """The part of the ids that names the source. Of a local path only the last component, so that moving the folder keeps them."""
    return local_path(config.dataset).name if is_local(config.dataset) else config.dataset
