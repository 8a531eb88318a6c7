"""The files of an adapter's folder: which are read, how, and which are never opened.

The folder may come from a clone or an archive, so a name in it may be a link to any file of this machine, or not a file at all.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from engine.core.errors import PreconditionError, UnsafeError
from engine.core.layout import ADAPTER_WEIGHTS
from engine.security.sanitize import visible_line

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Files that a trainer leaves behind. They are pickles, too, but nothing here ever opens them.
NEVER_OPENED = re.compile(r"training_args\.bin|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state.*\.pth")
EXPORT_AGAIN = (
    "Export the Stage 2 adapter again with `model.save_pretrained(folder)`, and pass that folder with --adapter-path."
)
CONVERT = (
    "If you trust it, load it with PEFT and save it again: `model.save_pretrained(folder)` writes safetensors. "
    "Pass that folder with --adapter-path."
)
PICKLE_RISK = "It is a Python pickle, and opening one can run any program."


def safe_path(path: Path) -> str:
    """A path, safe to write to a terminal."""
    return visible_line(str(path), 400)


def first_few(names: list[str], limit: int = 3) -> str:
    """The first few of many names from a file, in one line."""
    return ", ".join(visible_line(name, 120) for name in names[:limit]) + (", …" if len(names) > limit else "")


def refuse_pickles(folder: Path) -> list[str]:
    """The names of pickles that a trainer left behind, which are never opened. Raises UnsafeError for weights in a pickle."""
    names = [path.name for path in folder.iterdir()]
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    weights = [name for name in pickles if not NEVER_OPENED.fullmatch(name)]
    if weights:
        raise pickle_error(safe_path(folder), weights, beside=ADAPTER_WEIGHTS in names)
    return pickles


def pickle_error(where: str, weights: list[str], *, beside: bool) -> UnsafeError:
    """The error for weights in pickles, alone or beside the safetensors file."""
    if beside:
        return UnsafeError(
            f"The adapter {where} contains {first_few(weights)} beside {ADAPTER_WEIGHTS}.",
            f"{PICKLE_RISK} Other programs may load it instead of the safetensors file.",
            f"Remove it: {ADAPTER_WEIGHTS} is enough.",
        )
    return UnsafeError(f"The adapter {where} has its weights only in {first_few(weights)}.", PICKLE_RISK, CONVERT)


def open_adapter_file(folder: Path, name: str) -> BinaryIO:
    """Open a regular file of the folder. Raises PreconditionError if it is missing, UnsafeError for a link out of the folder
    (except within the Hub's own cache) and for anything that is not a regular file.
    """
    path = folder / name
    if not os.path.lexists(path):
        raise PreconditionError(f"{safe_path(folder)} has no {name}.", *_missing_file_advice(folder, name))
    if _links_outside(path, folder):
        raise UnsafeError(
            f"{safe_path(path)} is a link out of the folder, to {safe_path(Path(path.readlink()))}.",
            "A foreign folder could link to any file of this machine, and the target can change while the folder stays "
            "the same.",
            "Replace the link with a copy of the file, or pass the folder that it points into with --adapter-path.",
        )
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # O_NONBLOCK: opening a FIFO must not block
    except OSError as error:
        raise PreconditionError(
            f"Cannot read {safe_path(path)}.",
            visible_line(error.strerror or str(error)),
            "Change its mode or owner.",
        ) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UnsafeError(
            f"{safe_path(path)} is not a regular file.", "An adapter consists of regular files.", EXPORT_AGAIN
        )
    return os.fdopen(file, "rb")


def _links_outside(path: Path, folder: Path) -> bool:
    if not path.is_symlink():
        return False
    if path.resolve().is_relative_to(folder.resolve()):
        return False
    # In the Hub's cache, models--owner--name/snapshots/<commit>/ links to models--owner--name/blobs/.
    blob_folder = folder.parent.parent / "blobs"
    target = Path(os.path.normpath(path.parent / path.readlink()))
    return not (folder.parent.name == "snapshots" and target.parent == blob_folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The `checkpoint-N` with the most steps among those that contain an adapter; None if none does."""
    checkpoints = [(int(name[1]), path) for path in folder.iterdir() if (name := _CHECKPOINT.fullmatch(path.name))]
    return next((path for _, path in sorted(checkpoints, reverse=True) if (path / ADAPTER_WEIGHTS).is_file()), None)


_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")


def _missing_file_advice(folder: Path, name: str) -> tuple[str, str]:
    """Why a missing file matters, and what to do about it."""
    newest = newest_checkpoint(folder)
    if newest is not None:
        return (
            "It is a trainer's output folder: the adapters are in its checkpoints.",
            f"Pass the newest one: --adapter-path {safe_path(newest)}",
        )
    if name != ADAPTER_WEIGHTS:
        return "Without its configuration, the adapter's weights are meaningless.", EXPORT_AGAIN
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"It has {first_few(others)}, but a full model, or a part of one, is not an adapter.", EXPORT_AGAIN
    return "That file contains the adapter's weights.", EXPORT_AGAIN
