"""The local Hub cache: commits, completeness, and the remains of interrupted downloads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from engine.core.errors import UnsafeError
from engine.core.reading import read_file
from engine.core.typed import validated
from engine.hub.urls import RepoType
from engine.storage.jsonl import loads

LARGEST_INDEX = 64 << 20
"""Bytes; the index of a model in two hundred shards has a few million."""
LONGEST_REFERENCE = 4096
"""Bytes; a commit has forty."""
INDEX_SUFFIX = ".index.json"
"""Suffix of the file that lists the shards of weights that are too large for one file."""


def cached_snapshot(repo_id: str, repo_type: RepoType, revision: str) -> Path | None:
    """The folder, named after its commit, of the last download of `revision`; None if it is not in the cache."""
    folder = cache_folder(repo_id, repo_type)
    reference = folder / "refs" / revision
    commit = revision
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        if not reference.is_file():
            return None
        commit = read_file(reference, LONGEST_REFERENCE, follow_links=True).decode("utf-8", "replace").strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() and any(snapshot.iterdir()) else None


def missing_from(snapshot: Path, wanted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of files that are missing. Each item of `wanted` lists the possible names of one file; for sharded weights, every
    shard in the index is required, too.
    """
    return tuple(name for names in wanted for name in _missing(snapshot, names))


def unfinished_bytes(repo_id: str, repo_type: RepoType) -> int:
    """Size of what killed downloads left behind; no download resumes from it."""
    blobs = cache_folder(repo_id, repo_type) / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*.incomplete"))


def _missing(snapshot: Path, names: Sequence[str]) -> Iterator[str]:
    present = [name for name in names if (snapshot / name).exists()]  # False for a link whose blob is gone
    if not present:
        yield names[0]
    elif present[0].endswith(INDEX_SUFFIX):
        yield from (shard for shard in _shards(snapshot / present[0]) if not (snapshot / shard).exists())


class _Index(BaseModel):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


def _shards(index: Path) -> list[str]:
    try:
        contents = validated(_Index, loads(read_file(index, LARGEST_INDEX, follow_links=True)))
    except (OSError, ValueError, UnsafeError):
        return [f"{index.name} (unreadable)"]
    return sorted(set(contents.weight_map.values()))


def cache_folder(repo_id: str, repo_type: RepoType) -> Path:
    """The cache folder of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{repo_id.replace('/', '--')}"
