"""Select the files of a run to pack: regular files on an allow-list of names.

Everything else is left out. Anything near the packed files that could pull in another file or run a program is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from engine.core import layout
from engine.core.errors import DamagedState, PreconditionError, UnsafeError
from engine.core.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engine.core.reading import open_file
from engine.models.adapters.folder import PICKLE_SUFFIXES
from engine.run.folder import Run
from engine.security.sanitize import visible_line

MODEL_CARD = "README.md"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

RUN_FILES = (
    layout.RUN_JSON,
    layout.PAIRS_JSONL,
    layout.EDITS_JSONL,
    layout.SCORES_JSONL,
    layout.RELEVANCE_JSONL,
    layout.PAIRS_REPORT,
    layout.TRAIN_JSONL,
    layout.EVAL_JSONL,
    layout.EVALUATION_REPORT,
    layout.METRICS_JSON,
)
ADAPTER_FILES = (
    ADAPTER_WEIGHTS,
    ADAPTER_CONFIG,
    MODEL_CARD,
    TOKENIZER,
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
)
LISTED = (*RUN_FILES, *(f"{layout.ADAPTER_DIR}/{name}" for name in ADAPTER_FILES))
REQUIRED = (f"{layout.ADAPTER_DIR}/{ADAPTER_WEIGHTS}", f"{layout.ADAPTER_DIR}/{ADAPTER_CONFIG}")
FOLDERS = tuple(sorted({PurePosixPath(name).parts[0] for name in LISTED if "/" in name}))
# Not checked either: people link these to other disks, and they may contain pickles.
NEVER_PACKED = (
    layout.CHECKPOINTS_DIR,
    layout.CACHE_DIR,
    "trials",
    PurePosixPath(layout.RUN_LOG).parts[0],
    layout.SUPERSEDED_DIR,
    "preflight",
)

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
_LINK = "a symbolic link, which could bring any file of this machine into the archive"
_PICKLE_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Content:
    """One file as read from disk."""

    data: bytes
    sha256: str
    """The hash of the bytes on disk, even if `data` is changed afterwards."""


def packed_names(run: Run) -> list[str]:
    """The existing files of the run that are on the allow-list, sorted."""
    return sorted(name for name in LISTED if os.path.lexists(run / name) and byte_limit(run, name) != 0)


def byte_limit(run: Run, name: str) -> int | None:
    """How many bytes of a file are packed; None for all. Of people's decisions only those that stage quality has read are
    packed: the training set is made from them, and later ones count for the next run.
    """
    quality = run.results.quality
    return None if name != layout.EDITS_JSONL or quality is None else quality.edits_bytes


def unlisted_names(run: Run) -> list[str]:
    """Names in the adapter's folder that are not packed."""
    folder = run / layout.ADAPTER_DIR
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in ADAPTER_FILES)


def read_contents(run: Run) -> dict[str, Content]:
    """Read every file to pack, by name.

    Raises UnsafeError for a link, a device, a pickle or a dangerous name among the packed files, PreconditionError without an
    adapter.
    """
    refuse_unsafe_files(run)
    contents = {name: read_file(run, name) for name in packed_names(run)}
    for name in REQUIRED:
        if name not in contents:
            raise PreconditionError(f"{run / name} does not exist.", "Stage training writes it.", "Run training first.")
    return contents


def refuse_changed(run: Run, contents: dict[str, Content]) -> None:
    """Raise DamagedState if a file has changed since it was read."""
    added_or_removed = sorted(set(packed_names(run)) ^ contents.keys())
    changed = added_or_removed or [name for name in contents if read_file(run, name).sha256 != contents[name].sha256]
    if changed:
        raise DamagedState(
            f"{run / changed[0]} changed while it was packed.",
            "The archive would mix files of different times.",
            "Find out which program writes there, then run the same command again.",
        )


# -- refusals -----------------------------------------------------------------------------------------------------------


def refuse_unsafe_files(run: Run) -> None:
    """Raise UnsafeError for anything that must not be in the run folder or in a packed folder."""
    _refuse_name(run.folder)
    for path in _checked_paths(run):
        _refuse_name(path)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if stat.S_ISLNK(status.st_mode):
            raise _unsafe(path, _LINK)
        if not stat.S_ISREG(status.st_mode):
            raise _unsafe(path, f"not a regular file but {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}")
        if status.st_nlink > 1:
            raise _unsafe(path, "a hard link to a file elsewhere")
        if path.suffix.lower() in PICKLE_SUFFIXES or _begins_like_a_pickle(path):
            raise UnsafeError(
                f"{_shown(path)} is a pickle in a packed folder.",
                "Opening a pickle can run any program, and stage3-tui never writes one there.",
                "Find out where it comes from, remove it, and run the same command again.",
            )


def _checked_paths(run: Run) -> Iterator[Path]:
    for entry in sorted(run.folder.iterdir()):
        if entry.name in NEVER_PACKED:
            continue
        yield entry
        if entry.name in FOLDERS and not entry.is_symlink():
            for folder, subfolders, files in os.walk(entry):
                yield from (Path(folder) / name for name in sorted([*subfolders, *files]))


def _refuse_name(path: Path) -> None:
    if "\\" in path.name or path.name.startswith("..") or not path.name.isprintable():
        raise UnsafeError(
            f"{_shown(path)} has a name that other systems may read as a path.",
            "It begins with two dots, or contains a backslash or control characters.",
            "Rename or remove it, and run the same command again.",
        )


def _begins_like_a_pickle(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(2) in _PICKLE_PROTOCOLS


def _unsafe(path: Path, what: str) -> UnsafeError:
    return UnsafeError(
        f"{_shown(path)} is {what}.",
        "Only regular files may be in a packed folder.",
        "Replace it with a copy of the file, or remove it, then run the same command again.",
    )


def _shown(path: Path) -> str:
    return visible_line(str(path))


# -- reading ------------------------------------------------------------------------------------------------------------


def read_file(run: Run, name: str) -> Content:
    """Read a regular file below the run folder, following no links on the way. Raises UnsafeError, DamagedState."""
    try:
        file = _opened_below(run.folder, PurePosixPath(name).parts)
    except FileNotFoundError as error:
        raise DamagedState(f"{run / name} disappeared.", str(error), "Run the same command again.") from error
    except OSError as error:  # since the check, it was replaced by a link or a socket
        raise _unsafe(run / name, f"not a regular file ({error.strerror})") from error
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _unsafe(run / name, "not a regular file")
        data = opened.read(byte_limit(run, name))
    return Content(data, sha256(data).hexdigest())


def _opened_below(folder: Path, parts: tuple[str, ...]) -> int:
    """Open the file folder by folder, and return its descriptor. Does not block on a FIFO."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts[:-1]:
        try:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = inner
    try:
        return os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
