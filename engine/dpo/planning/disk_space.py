"""Disk space for the whole run: an estimate from the configuration, before any download.

What goes where
    downloads    on the disk of the Hub's cache: base model, dataset, reward model, adapter, minus what is already cached
    the run      on the disk of the run folder: pairs, checkpoints, the archive, by the formula of preflight's forecast
                 (`engine.dpo.planning.forecast.disk_parts`), plus RESERVE, minus what the run folder already contains
Upper bounds of unknown quantities
    base model   without asking the Hub: the billions of parameters in its name, times 2 bytes (16 bits), times NAMED_SHARE,
                 because names leave out the embeddings
    a record     every text at its maximum length
    adapter      the number of values in its file if it is local; otherwise ADAPTER_NUMBERS
Preflight measures a record and a checkpoint, and checks again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError, UnsafeError
from engine.core.events import Check
from engine.core.layout import ADAPTER_WEIGHTS
from engine.core.reading import open_file
from engine.core.sizes import format_size
from engine.dpo.planning.forecast import CHECKPOINT_COPIES, WIDTH, disk_parts
from engine.hub.cache import cache_folder
from engine.hub.references import local_path
from engine.hub.run_requirements import HubRequirement, hub_requirements
from engine.pairs.generation.cost import expected_prompts, replies_per_pair
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.storage.files import size_of_folder
from engine.storage.jsonl import loads
from engine.workspace import NAME

NAMED_SHARE = 1.25
"""Upper bound of the ratio of actual to named size: gemma-2b has 2.51 billion parameters, gemma-7b 8.54, Llama-3.1-8B 8.03."""
UNNAMED_BYTES = 5 << 30
"""For models whose name contains no size: the size of gemma-2b-it."""
DATASET_BYTES = 500 << 20
"""An allowance for a dataset and its Arrow tables."""
BYTES_PER_TOKEN = 4
ADAPTER_NUMBERS = 20_000_000
"""LoRA of rank 16 on all projections of gemma-2b: 16 × 18 layers × 68,096."""
RESERVE = 200 << 20
"""For logs, events, temporary files, and whatever other programs write in the meantime."""
RUN_FOLDERS = ("pairs", "dpo_dataset", layout.CHECKPOINTS_DIR, "models")

_BILLIONS = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)
_MILLIONS = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)m(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that will be written to one disk, by purpose."""

    what: str
    """The files of the run, downloads, or both if they share a disk."""
    folder: Path
    """An existing folder on that disk."""
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def in_words(self) -> str:
        return ", ".join(f"{name} {format_size(size)}" for name, size in self.parts.items() if size)


def disk_needs(config: Stage3Config, run: Run) -> list[DiskNeed]:
    """What the run will write to each disk; the run folder's disk comes first."""
    return _by_disk(
        DiskNeed("the files of the run", _nearest_existing(run.folder), _run_parts(config, run)),
        DiskNeed(
            "downloads",
            _nearest_existing(_hub_cache()),
            {need.what: _download(need) for need in hub_requirements(config, run)},
        ),
    )


def require_disk_space(config: Stage3Config, run: Run) -> Generator[Check, None, int]:
    """One line per disk. Returns the free bytes on the run folder's disk; raises PreconditionError if too few are free."""
    disks = [(need, shutil.disk_usage(need.folder).free) for need in disk_needs(config, run)]
    for number, (need, free) in enumerate(disks):
        name = "free disk" if number == 0 else f"free disk, {need.what}"
        have = f"{format_size(free)} at {visible_line(str(need.folder))}"
        wanted = f"about {format_size(need.bytes)} needed ({need.in_words})"
        yield Check(name, "ok" if free >= need.bytes else "failed", f"{have}; {wanted}; preflight measures precisely")
    for need, free in disks:
        if free < need.bytes:
            raise PreconditionError(
                f"{visible_line(str(need.folder))} has {format_size(free)} free, but {need.what} need about "
                f"{format_size(need.bytes)}.",
                f"Estimated from the configuration: {need.in_words}. A full disk would truncate files.",
                "Free some space, choose another --output-dir (HF_HOME for downloads), or lower --num-examples or "
                "--save-total-limit.",
            )
    return disks[0][1]


def _run_parts(config: Stage3Config, run: Run) -> dict[str, int]:
    texts = replies_per_pair(config) * config.max_new_tokens
    record = BYTES_PER_TOKEN * (texts + 2 * config.max_prompt_tokens)  # a record contains the prompt twice
    parts = disk_parts(
        num_examples=expected_prompts(config),
        record_bytes=record,
        checkpoint_bytes=CHECKPOINT_COPIES * WIDTH["float32"] * _adapter_numbers(config, run),
        save_total_limit=config.save_total_limit,
    )
    existing = sum(size_of_folder(run / name) for name in RUN_FOLDERS if (run / name).is_dir())
    existing += run.archive.stat().st_size if run.archive.is_file() else 0
    remaining = max(sum(parts.values()) - existing, 0)
    share = remaining / sum(parts.values())
    return {**{name: int(size * share) for name, size in parts.items()}, "reserve": RESERVE}


def _adapter_numbers(config: Stage3Config, run: Run) -> int:
    """Number of values in the Stage 2 adapter, from the header of its file if it is local."""
    workspace = run.result(NAME).get("folder")
    folders = [local_path(config.adapter_path), *([Path(workspace) / config.adapter_path] if workspace else [])]
    for folder in folders:
        try:
            with open_file(folder / ADAPTER_WEIGHTS, follow_links=True) as file:
                header = loads(file.read(min(int.from_bytes(file.read(8), "little"), 16 << 20)))
            return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        except (OSError, UnsafeError, ValueError, KeyError, TypeError, AttributeError):
            continue  # missing or damaged: stage adapter reports it
    return ADAPTER_NUMBERS


def _download(need: HubRequirement) -> int:
    """Bytes still to be downloaded."""
    if need.repo_type == "dataset":
        total = DATASET_BYTES
    elif need.what == "adapter":
        total = WIDTH["float32"] * ADAPTER_NUMBERS
    else:
        total = model_bytes(need.repo_id)
    return max(total - _cached(need), 0)


def model_bytes(repo_id: str) -> int:
    """Bytes of the weights in 16 bits, from the parameter count in the model's name (2b, 8x7b, 350m)."""
    name = repo_id.rpartition("/")[2]
    for pattern, unit in ((_BILLIONS, 1e9), (_MILLIONS, 1e6)):
        if match := pattern.search(name):
            return int(int(match[1] or 1) * float(match[2]) * unit * WIDTH["bfloat16"] * NAMED_SHARE)
    return UNNAMED_BYTES


def _cached(need: HubRequirement) -> int:
    """Bytes that the Hub's cache already has. Interrupted downloads are not resumed, so `.incomplete` files do not count."""
    blobs = cache_folder(need.repo_id, need.repo_type) / "blobs"
    if not blobs.is_dir():
        return 0
    return sum(path.stat().st_size for path in blobs.iterdir() if not path.name.endswith(".incomplete"))


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _by_disk(first: DiskNeed, second: DiskNeed) -> list[DiskNeed]:
    if not second.bytes:
        return [first]
    if disk_of(first.folder) == disk_of(second.folder):
        return [DiskNeed(f"{first.what} and {second.what}", first.folder, {**second.parts, **first.parts})]
    return [first, second]


def disk_of(path: Path) -> int:
    return path.stat().st_dev


def _nearest_existing(path: Path) -> Path:
    """The nearest parent that exists and is accessible; it is on the same disk."""
    return next(parent for parent in (path, *path.parents) if os.access(parent, os.F_OK))
