"""Prompts: a dataset on the Hub or here, a split expression, and the conversation before the last assistant turn."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, NetworkError
from engine.hub import as_hub_error, cached_snapshot, is_offline
from engine.hub.references import is_local, local_path
from engine.models.chat import Conversation
from engine.pairs.data.conversations import conversation_of
from engine.storage.jsonl import BadLine, read_jsonl, read_records

_SPLIT_TERM = re.compile(r"^\s*([\w.-]+)\s*(?:\[\s*(-?\d*%?)\s*:\s*(-?\d*%?)\s*\])?\s*$")


class SplitTerm(NamedTuple):
    """`test[:1000]` is ("test", "", "1000")."""

    name: str
    start: str
    stop: str


@dataclass(frozen=True)
class Prompt:
    id: str
    """A hash of the conversation and where it comes from: the same row has the same id in every run."""
    messages: Conversation
    """The conversation before the answer; its last message is the user's."""

    @property
    def text(self) -> str:
        """The notebook's `prompt`: what the user said last."""
        return self.messages[-1]["content"]


def load_prompts(config: Stage3Config, token: str | None = None) -> list[Prompt]:
    """The prompts of `--dataset` and `--split`, shuffled by `--seed`, without doubles, at most `--num-examples`; all of
    them with `--target-pairs`.

    Raises ConfigError for a split, file or row that cannot be read, NetworkError when the Hub does not answer.
    """
    terms = parse_split(config.split)
    rows = _local_rows(config, terms) if is_local(config.dataset) else _hub_rows(config, token)
    found: dict[str, Prompt] = {}
    for number, row in enumerate(rows):
        messages = conversation_of(row)
        if messages is None:
            raise ConfigError(
                f"Row {number} of {config.dataset} ({config.split}) has no conversation that waits for an answer.",
                f"Its columns are {', '.join(sorted(row))}.",
                "A row needs `chosen` in the form of hh-rlhf, or `messages`, or `prompt`.",
            )
        prompt = Prompt(prompt_id(messages, _source_name(config)), messages)
        found.setdefault(prompt.id, prompt)
    prompts = list(found.values())
    Random(config.seed).shuffle(prompts)
    return prompts if config.target_pairs else prompts[: config.num_examples]


def parse_split(expression: str) -> list[SplitTerm]:
    """`test[:1000]+train[:1500]`: names, slices by row or per cent, and sums of them. Raises ConfigError."""
    terms = []
    for part in expression.split("+"):
        match = _SPLIT_TERM.match(part)
        if match is None:
            raise ConfigError(
                f"--split {expression!r}: {part.strip()!r} is no split.",
                "A split is a name, and perhaps a slice of it.",
                'Write it like "train", "test[:1000]" or "test[:1000]+train[10%:20%]".',
            )
        terms.append(SplitTerm(match[1], match[2] or "", match[3] or ""))
    return terms


def slice_of(term: SplitTerm, length: int) -> slice:
    """The rows of a term in a split of `length` rows; per cent are rounded to the nearest row."""

    def bound(text: str) -> int | None:
        if not text:
            return None
        return round(int(text[:-1]) * length / 100) if text.endswith("%") else int(text)

    return slice(bound(term.start), bound(term.stop))


def prompt_id(messages: Conversation, source: str) -> str:
    plain = json.dumps([source, [[m["role"], m["content"]] for m in messages]], ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


# -- where rows come from ---------------------------------------------------------------------------------------------


def _source_name(config: Stage3Config) -> str:
    """Goes into ids: of a local dataset only the last part, so that a moved folder keeps its ids."""
    return local_path(config.dataset).name if is_local(config.dataset) else config.dataset


def _local_rows(config: Stage3Config, terms: list[SplitTerm]) -> Iterator[dict[str, Any]]:
    files = local_splits(local_path(config.dataset))
    for term in terms:
        if term.name not in files:
            raise ConfigError(
                f"--split {config.split!r}: {config.dataset} has no split {term.name!r}.",
                f"It has {', '.join(sorted(files))}; a single file is one split named train.",
                f'For example --split "{next(iter(sorted(files)))}[:100]".',
            )
        rows = [row for _, row in read_rows(files[term.name])]
        for number, row in enumerate(rows):
            if isinstance(row, BadLine):
                raise ConfigError(f"Line {number + 1} of {files[term.name]} is {row.reason}.", "", "Mend or remove it.")
        yield from [row for row in rows if isinstance(row, dict)][slice_of(term, len(rows))]


def local_splits(path: Path) -> dict[str, Path]:
    """The splits of a local dataset: a file is `train`; in a folder each JSONL or JSONL.gz is one, named after it."""
    if path.is_dir():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz"), *path.glob("*.json.gz")])
        if files:
            return {file.name.split(".")[0]: file for file in files}
    elif path.is_file():
        return {"train": path}
    raise ConfigError(
        f"--dataset {path}: there is no JSONL or JSONL.gz there.",
        "A local dataset is a file, or a folder with one file a split.",
        "Give another path, or a Hub id like Anthropic/hh-rlhf.",
    )


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """`read_jsonl`, for a file that may be compressed."""
    if path.suffix != ".gz":
        yield from read_jsonl(path, last_line_may_lack_newline=True)
        return
    try:
        with gzip.open(path) as file:
            yield from read_records(file, last_line_may_lack_newline=True)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read.", str(error), "Fetch it again, or give another file.") from error


def _hub_rows(config: Stage3Config, token: str | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    where: dict[str, Any] = {"path": config.dataset, "revision": config.dataset_revision, "token": token}
    if is_offline() and (here := cached_snapshot(config.dataset, "dataset", config.dataset_revision)):
        where = {"path": str(here)}  # by itself datasets takes the newest copy that it has, whatever the revision
    try:
        yield from load_dataset(**where, split=config.split)
    except (ConnectionError, TimeoutError, OSError) as error:
        raise as_hub_error(error) or NetworkError(
            f"The dataset {config.dataset} ({config.split}) could not be loaded.",
            str(error),
            "Check the network, or give a local file with --dataset.",
        ) from error
