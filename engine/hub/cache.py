"""What of the Hub is here already: at which commit, whether whole, and what downloads left that broke off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.hub.urls import RepoType

INDEX_SUFFIX = ".index.json"
"""Of the file that lists the parts of weights which are too large for one file."""


def cached_snapshot(repo_id: str, repo_type: RepoType, revision: str) -> Path | None:
    """The folder, named after its commit, of what `revision` was at the last download; None where there was none, or where its
    files are gone.
    """
    folder = cache_folder(repo_id, repo_type)
    reference = folder / "refs" / revision
    commit = revision
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        if not reference.is_file():
            return None
        commit = reference.read_text(encoding="utf-8", errors="replace").strip()
    there = folder / "snapshots" / commit
    return there if commit and there.is_dir() and any(there.iterdir()) else None


def missing_from(snapshot: Path, wanted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of files that a run would look for in vain. Each of `wanted` is one file under the names that it may have; of
    weights in parts, every part that their index names is wanted, too.
    """
    return tuple(name for names in wanted for name in _missing(snapshot, names))


def unfinished_bytes(repo_id: str, repo_type: RepoType) -> int:
    """What processes that were killed in the middle of a download left behind: nothing takes it up again."""
    blobs = cache_folder(repo_id, repo_type) / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*.incomplete"))


def _missing(snapshot: Path, names: Sequence[str]) -> Iterator[str]:
    there = [name for name in names if (snapshot / name).exists()]  # a link whose blob is gone does not exist
    if not there:
        yield names[0]
    elif there[0].endswith(INDEX_SUFFIX):
        yield from (part for part in _parts(snapshot / there[0]) if not (snapshot / part).exists())


def _parts(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [f"{index.name} (it cannot be read)"]


def cache_folder(repo_id: str, repo_type: RepoType) -> Path:
    """Where the Hub's client keeps a repository, if it has it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{repo_id.replace('/', '--')}"
