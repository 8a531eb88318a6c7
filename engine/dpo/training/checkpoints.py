"""Checkpoints, which count only if complete: a manifest with the hash of each file is written last.

A checkpoint is written under a temporary name, and renamed once it has its manifest. The newest good checkpoint is the one
with the highest step, regardless of file times. A bad checkpoint is renamed, not deleted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.core.errors import DamagedState
from engine.core.events import Message
from engine.core.failpoints import failpoint
from engine.core.reading import open_file
from engine.security.sanitize import visible_line
from engine.storage.documents import read_json
from engine.storage.files import publish_folder, sha256_of_file, size_of_folder, sync_folder, write_json

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = re.compile(r"\.checkpoint-\d+\.part")


@dataclass(frozen=True)
class FileFacts:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    step: int
    fingerprint: str
    files: dict[str, FileFacts]


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], fingerprint: str) -> Path:
    """Create `folder/checkpoint-<step>`. `fill` writes the files into the folder that it receives."""
    part = partial_path(folder, step)
    final = folder / f"checkpoint-{step}"
    _remove(part)
    folder.mkdir(exist_ok=True)  # without parents, so that a run folder that was moved is not recreated
    part.mkdir()
    failpoint("checkpoint")
    fill(part)
    files = {}
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
        with open_file(path) as file:
            failpoint("sync")
            os.fsync(file.fileno())
        files[path.relative_to(part).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    failpoint("checkpoint")
    write_json(part / MANIFEST, {"step": step, "fingerprint": fingerprint, "files": files})
    if os.path.lexists(final):
        _rename_broken(final)
    failpoint("rename")
    part.rename(final)
    sync_folder(folder)
    return final


def partial_path(folder: Path, step: int) -> Path:
    """The folder of a checkpoint while it is being written."""
    return folder / f".checkpoint-{step}.part"


def checkpoint_error(checkpoint: Path, fingerprint: str) -> str:
    """Why training cannot resume from `checkpoint`; empty if it can."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return "it is not a folder"
    try:
        manifest = read_json(checkpoint / MANIFEST, CheckpointManifest)
    except FileNotFoundError:
        return "it has no manifest, so it is incomplete"
    except (OSError, DamagedState) as error:
        return f"its manifest cannot be read ({error.why if isinstance(error, DamagedState) else error})"
    if checkpoint.name != f"checkpoint-{manifest.step}":
        return f"its manifest belongs to step {manifest.step}"
    if manifest.fingerprint != fingerprint:
        return "it belongs to a training with different data or settings"
    if not manifest.files:
        return "its manifest lists no files"
    return next(
        (problem for name, facts in manifest.files.items() if (problem := _file_problem(checkpoint, name, facts))), ""
    )


def _file_problem(checkpoint: Path, name: str, facts: FileFacts) -> str:
    """What is wrong with a file of a checkpoint; empty if nothing is."""
    path, shown = checkpoint / name, visible_line(name, 120)
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        return f"its manifest lists {shown}, which is outside the checkpoint"
    try:
        if not path.is_file():
            return f"{shown} is missing"
        if path.stat().st_size != facts.bytes or sha256_of_file(path) != facts.sha256:
            return f"{shown} has changed"
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror})"
    return ""


def newest_good(folder: Path, fingerprint: str) -> tuple[Path | None, list[Message]]:
    """The checkpoint to resume from, or None, and messages about bad ones that were renamed."""
    messages: list[Message] = []
    for part in folder.glob(".checkpoint-*.part"):
        if _UNFINISHED.fullmatch(part.name):
            _remove(part)  # it was never completed, so nothing depends on it
    for checkpoint in reversed(by_step(folder)):
        problem = checkpoint_error(checkpoint, fingerprint)
        if not problem:
            return checkpoint, messages
        renamed = _rename_broken(checkpoint)
        messages.append(Message("warning", f"Skipped {checkpoint.name}: {problem}. Renamed it to {renamed.name}."))
    return None, messages


def adopt(folder: Path, others: Iterable[Path], fingerprint: str) -> Path | None:
    """Copy the newest complete checkpoint of the same training from one of `others` into `folder`, and return the original;
    None if there is none.

    The same data and settings give the same training, so nothing has to be repeated.
    """
    candidates = [
        checkpoint for other in others for checkpoint in by_step(other) if not checkpoint_error(checkpoint, fingerprint)
    ]
    if not candidates:
        return None
    newest = max(candidates, key=step_of)
    part, final = folder / f".{newest.name}.part", folder / newest.name
    _remove(part)
    folder.mkdir(exist_ok=True)
    shutil.copytree(newest, part)
    publish_folder(part, final)
    return newest


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints. Renamed broken ones are neither counted nor touched."""
    checkpoints = [checkpoint for checkpoint in by_step(folder) if checkpoint.is_dir() and not checkpoint.is_symlink()]
    for checkpoint in checkpoints[:-keep]:
        (checkpoint / MANIFEST).unlink(
            missing_ok=True
        )  # first, so that the rest does not count if the process is killed
        failpoint("delete")
        shutil.rmtree(checkpoint)


def by_step(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, lowest step first."""
    numbered = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def size_of(checkpoint: Path) -> int:
    return size_of_folder(checkpoint)


def _remove(part: Path) -> None:
    """Delete a folder, a file, or a link without its target."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _rename_broken(checkpoint: Path) -> Path:
    number, target = 1, checkpoint.with_name(f"broken-{checkpoint.name}")
    while os.path.lexists(target):
        number += 1
        target = checkpoint.with_name(f"broken-{checkpoint.name}.{number}")
    checkpoint.rename(target)
    return target
