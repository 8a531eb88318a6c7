"""Checkpoints, which count only if complete: a manifest with the hash of each file is written last.

A checkpoint is written under another name and renamed once it has its manifest. The newest good one is that with the
highest step, whatever the file times. A bad one is renamed, not deleted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.core.events import Message
from engine.core.failpoints import failpoint
from engine.storage.files import name_folder, sha256_of_file, size_of_folder, sync_folder, write_json

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = re.compile(r"\.checkpoint-\d+\.part")


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], fingerprint: str) -> Path:
    """Make `folder/checkpoint-<step>`. `fill` writes its files into the folder that it is given."""
    part = folder / f".checkpoint-{step}.part"
    final = folder / f"checkpoint-{step}"
    shutil.rmtree(part, ignore_errors=True)
    folder.mkdir(exist_ok=True)  # without parents, so that a run folder that was moved away is not recreated
    part.mkdir()
    failpoint("checkpoint")
    fill(part)
    files = {}
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            failpoint("sync")
            os.fsync(file.fileno())
        files[path.relative_to(part).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    failpoint("checkpoint")
    write_json(part / MANIFEST, {"step": step, "fingerprint": fingerprint, "files": files})
    if final.exists():
        _rename_broken(final)
    failpoint("rename")
    part.rename(final)
    sync_folder(folder)
    return final


def checkpoint_error(checkpoint: Path, fingerprint: str) -> str:
    """Why `checkpoint` cannot be resumed; empty if it can."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        step, made_for, files = manifest["step"], manifest["fingerprint"], dict(manifest["files"])
    except FileNotFoundError:
        return "it has no manifest, so it is incomplete"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest is unreadable ({error})"
    if checkpoint.name != f"checkpoint-{step}":
        return f"its manifest belongs to step {step}"
    if made_for != fingerprint:
        return "it belongs to a training with different data or settings"
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or sha256_of_file(path) != facts["sha256"]:
            return f"{name} has changed"
    return ""


def newest_good(folder: Path, fingerprint: str) -> tuple[Path | None, list[Message]]:
    """The checkpoint to resume from, or None, and messages about bad ones that were renamed."""
    told: list[Message] = []
    for unfinished in folder.glob(".checkpoint-*.part"):
        if _UNFINISHED.fullmatch(unfinished.name):
            shutil.rmtree(unfinished)  # never completed, so nothing depends on it
    for checkpoint in reversed(by_step(folder)):
        fault = checkpoint_error(checkpoint, fingerprint)
        if not fault:
            return checkpoint, told
        aside = _rename_broken(checkpoint)
        told.append(Message("warning", f"Skipped {checkpoint.name}: {fault}. Renamed it to {aside.name}."))
    return None, told


def adopt(folder: Path, others: Iterable[Path], fingerprint: str) -> Path | None:
    """Copy the newest complete checkpoint of the same training from one of `others` into `folder`; None if there is none.

    Equal data and settings give the same training, so nothing has to be repeated.
    """
    found = [
        checkpoint for other in others for checkpoint in by_step(other) if not checkpoint_error(checkpoint, fingerprint)
    ]
    if not found:
        return None
    newest = max(found, key=step_of)
    part, final = folder / f".{newest.name}.part", folder / newest.name
    shutil.rmtree(part, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    shutil.copytree(newest, part)
    name_folder(part, final)
    return newest


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints. Those renamed as broken are neither counted nor touched."""
    for checkpoint in by_step(folder)[:-keep]:
        (checkpoint / MANIFEST).unlink(missing_ok=True)  # first: what is left of it after a kill is no candidate
        failpoint("delete")
        shutil.rmtree(checkpoint)


def by_step(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, lowest step first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def size_of(checkpoint: Path) -> int:
    return size_of_folder(checkpoint)


def _rename_broken(checkpoint: Path) -> Path:
    number, aside = 1, checkpoint.with_name(f"broken-{checkpoint.name}")
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"broken-{checkpoint.name}.{number}")
    checkpoint.rename(aside)
    return aside
