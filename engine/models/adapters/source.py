"""Locate the Stage 2 adapter: a local folder, one in the workspace, or a commit on the Hub.

Branches move. Stage adapter resolves the commit once and records it; every later stage, and every later start of the run,
reads that commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, PreconditionError
from engine.core.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.hub.references import local_path, looks_like_hub_id
from engine.models.adapters.folder import NEVER_OPENED, PICKLE_SUFFIXES, first_few, pickle_error
from engine.models.adapters.vocabulary import TOKENIZER_FILES
from engine.run.folder import Run
from engine.security.sanitize import visible_line

LISTING_SECONDS = 30.0


@dataclass(frozen=True)
class AdapterSource:
    """The adapter's folder, and its origin on the Hub."""

    folder: Path
    repo_id: str | None = None
    revision: str | None = None
    """The value of --adapter-revision: a branch, a tag or a commit."""
    commit: str | None = None
    sha256: str | None = None
    """Hash of the weights according to the Hub; None if unknown."""
    not_downloaded: tuple[str, ...] = ()
    """Pickles in the repository, which are never downloaded."""

    def __str__(self) -> str:
        if self.repo_id is None:
            return visible_line(str(self.folder))
        return f"{visible_line(self.repo_id)} on the Hub, {visible_line(self.revision or '')} at commit {self.commit}"


def adapter_folder(config: Stage3Config, run: Run, token: str | None) -> Path:
    """The folder of the Stage 2 adapter. An adapter on the Hub is read at the commit that stage adapter recorded.

    Raises PreconditionError if it does not exist, and the Hub's errors.
    """
    return adapter_source(config, run, token).folder


def adapter_source(config: Stage3Config, run: Run, token: str | None) -> AdapterSource:
    """Locate `--adapter-path`: as a local folder, then in the workspace, then on the Hub. Raises as `adapter_folder`."""
    local = local_adapter(config, run)
    if local is not None:
        return AdapterSource(local)
    name, places = config.adapter_path, _places(config, run)
    if not any(place.exists() for place in places) and looks_like_hub_id(name):
        return _from_hub(run.result("adapter"), name, config.adapter_revision, token)
    files = [visible_line(str(place)) for place in places if place.exists()]
    raise PreconditionError(
        f"Found no Stage 2 adapter at {' or '.join(visible_line(str(place)) for place in places)}.",
        f"{files[0]} is a file, but an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
        if files
        else "Stage 3 starts from the Stage 2 LoRA adapter.",
        "Pass its folder or Hub id with --adapter-path; `--demo` has one built in.",
    )


def local_adapter(config: Stage3Config, run: Run) -> Path | None:
    """The folder of a local adapter; None if it is on the Hub or does not exist."""
    return next((place for place in _places(config, run) if place.is_dir()), None)


def _places(config: Stage3Config, run: Run) -> list[Path]:
    """Where a local adapter may be: at the path itself, then in the workspace."""
    name = config.adapter_path
    workspace = run.result("workspace").get("folder")
    places = [local_path(name)]
    if workspace and not Path(name).expanduser().is_absolute():
        places.append(Path(workspace) / name)
    return list(dict.fromkeys(places))


def _from_hub(recorded: Mapping[str, Any], repo_id: str, revision: str, token: str | None) -> AdapterSource:
    """Download the adapter at the commit that stage adapter `recorded` for this revision, or at the revision's current one."""
    if (recorded.get("adapter_id"), recorded.get("adapter_revision")) == (repo_id, revision):
        commit, files = str(recorded["adapter_commit"]), [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return AdapterSource(_download(repo_id, commit, files, token), repo_id, revision, commit)
    listing = _listing(repo_id, revision, token)
    wanted = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES) if name in listing.files]
    folder = _download(repo_id, listing.commit, wanted, token)
    return AdapterSource(folder, repo_id, revision, listing.commit, listing.sha256, listing.pickles)


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: tuple[str, ...]
    sha256: str | None = None

    @property
    def pickles(self) -> tuple[str, ...]:
        return tuple(n for n in self.files if "/" not in n and n.lower().endswith(PICKLE_SUFFIXES))


def _listing(repo_id: str, revision: str, token: str | None) -> _Listing:
    """The commit and files of a revision, and the hash of the weights. Raises ConfigError for an unknown revision,
    PreconditionError or UnsafeError if the files are not an adapter's; the Hub's other errors pass through.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    if constants.is_offline_mode():
        return _cached_listing(repo_id, revision)
    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=LISTING_SECONDS, files_metadata=True)
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{repo_id} has no revision {visible_line(revision, 100)} (--adapter-revision).",
            "It is not a branch, tag or commit there.",
            "Pass one of them, or omit the option to use main.",
        ) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    weights = siblings.get(ADAPTER_WEIGHTS)
    lfs = weights.lfs if weights is not None else None
    listing = _Listing(str(info.sha), tuple(sorted(siblings)), lfs.sha256 if lfs is not None else None)
    _refuse_unless_adapter(repo_id, listing)
    return listing


def _refuse_unless_adapter(repo_id: str, listing: _Listing) -> None:
    """Check the list of files before anything is downloaded."""
    where = f"{repo_id} (commit {listing.commit[:12]})"
    weight_pickles = [name for name in listing.pickles if not NEVER_OPENED.fullmatch(name)]
    if ADAPTER_WEIGHTS not in listing.files and weight_pickles:
        raise pickle_error(where, weight_pickles, beside=False)
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in listing.files]
    if missing:
        raise PreconditionError(
            f"{where} has no {missing[0]}.",
            f"It has {first_few(list(listing.files), 5)}." if listing.files else "It is empty.",
            "Pass a repository with the adapter at its top level, or download the adapter's folder and pass its path, "
            "with --adapter-path.",
        )


def _cached_listing(repo_id: str, revision: str) -> _Listing:
    """The cached files of a revision, for offline use. Whether they are complete shows when they are read."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    found = try_to_load_from_cache(repo_id, ADAPTER_CONFIG, revision=revision)
    if not isinstance(found, str):
        raise OfflineModeIsEnabled(f"{repo_id} at {revision} is not in the cache.")
    folder = Path(found).parent
    return _Listing(folder.name, tuple(path.name for path in folder.iterdir()))


def _download(repo_id: str, commit: str, files: list[str], token: str | None) -> Path:
    """Download `files`, except for those in the Hub's cache. Returns the snapshot's folder."""
    from huggingface_hub import hf_hub_download

    paths = [Path(hf_hub_download(repo_id, name, revision=commit, token=token)) for name in files]
    return paths[0].parent


def require_hub_sha256(source: AdapterSource, sha256: str) -> None:
    """Raises PreconditionError if the cached weights differ from the Hub's."""
    if source.sha256 is not None and source.sha256 != sha256:
        path = source.folder / ADAPTER_WEIGHTS
        raise PreconditionError(
            f"{visible_line(str(path))} differs from the file on the Hub.",
            f"Its SHA-256 is {sha256}, the Hub's is {source.sha256}: the cache is damaged.",
            f"Remove {visible_line(str(path.resolve()))}, and run the same command again to download it.",
        )
