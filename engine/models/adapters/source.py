"""Where the Stage 2 adapter is: a folder here, in the workspace, or on the Hub at one commit.

A branch of the Hub moves. Its commit is asked for once, by the stage adapter, and recorded; every later stage, and every later
start of the run, reads that commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.core.errors import ConfigError, PreconditionError
from engine.core.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.hub.references import local_path, looks_like_hub_id
from engine.models.adapters.folder import NEVER_OPENED, PICKLE_SUFFIXES, few, pickled
from engine.models.adapters.vocabulary import TOKENIZER_FILES
from engine.run.context import Context
from engine.security.sanitize import visible_line

LISTING_SECONDS = 30.0


@dataclass(frozen=True)
class AdapterSource:
    """The adapter's folder, and where on the Hub it came from."""

    folder: Path
    repo_id: str | None = None
    revision: str | None = None
    """As it was asked for: a branch, a tag or a commit."""
    commit: str | None = None
    sha256: str | None = None
    """Of the weights, as the Hub says; None where it does not, or was not asked."""
    not_downloaded: tuple[str, ...] = ()
    """Pickles in the repository, which stay there."""

    def __str__(self) -> str:
        if self.repo_id is None:
            return visible_line(str(self.folder))
        return f"{visible_line(self.repo_id)} on the Hub, {visible_line(self.revision or '')} at commit {self.commit}"


def adapter_folder(context: Context) -> Path:
    """The folder of the Stage 2 adapter; of one on the Hub, at the commit that the stage adapter recorded.

    Raises PreconditionError when there is none, and what the Hub refuses.
    """
    return adapter_source(context).folder


def adapter_source(context: Context) -> AdapterSource:
    """`--adapter-path` from here, else from the workspace, else from the Hub. Raises as `adapter_folder`."""
    local = local_adapter(context)
    if local is not None:
        return AdapterSource(local)
    name, places = context.config.adapter_path, _places(context)
    if not any(place.exists() for place in places) and looks_like_hub_id(name):
        return _from_hub(context, name, context.config.adapter_revision)
    files = [visible_line(str(place)) for place in places if place.exists()]
    raise PreconditionError(
        f"There is no Stage 2 adapter at {' or '.join(visible_line(str(place)) for place in places)}.",
        f"{files[0]} is a file; an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
        if files
        else "Stage 3 starts from the Stage 2 LoRA adapter.",
        "Give its folder, or its Hub id, with --adapter-path; `--demo` brings one along.",
    )


def local_adapter(context: Context) -> Path | None:
    """The folder of an adapter that is on this machine; None where it is on the Hub, or nowhere."""
    return next((place for place in _places(context) if place.is_dir()), None)


def _places(context: Context) -> list[Path]:
    """Where a folder of that name may be: here, then in the workspace."""
    name = context.config.adapter_path
    workspace = context.run.result("workspace").get("folder")
    places = [local_path(name)]
    if workspace and not Path(name).expanduser().is_absolute():
        places.append(Path(workspace) / name)
    return list(dict.fromkeys(places))


def _from_hub(context: Context, repo_id: str, revision: str) -> AdapterSource:
    recorded = context.run.result("adapter")
    if (recorded.get("adapter_id"), recorded.get("adapter_revision")) == (repo_id, revision):
        commit, files = str(recorded["adapter_commit"]), [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return AdapterSource(_download(context, repo_id, commit, files), repo_id, revision, commit)
    listing = _listing(repo_id, revision, context.token_text)
    wanted = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES) if name in listing.files]
    folder = _download(context, repo_id, listing.commit, wanted)
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
    """Commit and files of a revision, and the hash of the weights. Raises ConfigError for a revision that is not there,
    PreconditionError or UnsafeError where the files are no adapter's; what the Hub refuses otherwise is left as it is.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    if constants.is_offline_mode():
        return _cached_listing(repo_id, revision)
    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=LISTING_SECONDS, files_metadata=True)
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"--adapter-revision {visible_line(revision, 100)} is not in {repo_id}.",
            "It is no branch, tag or commit there.",
            "Give one of them; without it, main is taken.",
        ) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    weights = siblings.get(ADAPTER_WEIGHTS)
    lfs = weights.lfs if weights is not None else None
    listing = _Listing(str(info.sha), tuple(sorted(siblings)), lfs.sha256 if lfs is not None else None)
    _refuse_unless_adapter(repo_id, listing)
    return listing


def _refuse_unless_adapter(repo_id: str, listing: _Listing) -> None:
    """Before anything is downloaded."""
    where = f"{repo_id} (commit {listing.commit[:12]})"
    of_weights = [name for name in listing.pickles if not NEVER_OPENED.fullmatch(name)]
    if ADAPTER_WEIGHTS not in listing.files and of_weights:
        raise pickled(where, of_weights, beside=False)
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in listing.files]
    if missing:
        raise PreconditionError(
            f"There is no {missing[0]} in {where}.",
            f"It has {few(list(listing.files), 5)}." if listing.files else "It is empty.",
            "Give a repository with an adapter at its top, or download the folder with the adapter and give its path, "
            "with --adapter-path.",
        )


def _cached_listing(repo_id: str, revision: str) -> _Listing:
    """Offline: what the cache has of a revision; that it is complete is seen when it is read."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    found = try_to_load_from_cache(repo_id, ADAPTER_CONFIG, revision=revision)
    if not isinstance(found, str):
        raise OfflineModeIsEnabled(f"{repo_id} at {revision} is not in the cache.")
    folder = Path(found).parent
    return _Listing(folder.name, tuple(path.name for path in folder.iterdir()))


def _download(context: Context, repo_id: str, commit: str, files: list[str]) -> Path:
    """The snapshot's folder in the Hub's cache. What is there already of a commit is not asked for again."""
    from huggingface_hub import hf_hub_download

    token = context.token_text
    paths = [Path(hf_hub_download(repo_id, name, revision=commit, token=token)) for name in files]
    return paths[0].parent


def require_the_hubs_bytes(source: AdapterSource, sha256: str) -> None:
    """Raises PreconditionError where the weights in the cache are not those of the Hub."""
    if source.sha256 is not None and source.sha256 != sha256:
        path = source.folder / ADAPTER_WEIGHTS
        raise PreconditionError(
            f"{visible_line(str(path))} is not what the Hub has.",
            f"Its SHA-256 is {sha256}, and the Hub's file has {source.sha256}: the cache is damaged.",
            f"Remove {visible_line(str(path.resolve()))}, and start again: it is downloaded anew.",
        )
