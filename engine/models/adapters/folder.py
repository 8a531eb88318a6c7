"""The files of an adapter's folder: which are read, how, and which are never opened.

A folder can come from a clone or an archive, so a name in it may be a link to any file of this machine, or no file at all.
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
# A trainer leaves these beside an adapter. They are pickles too, but nothing here ever opens them.
NEVER_OPENED = re.compile(r"training_args\.bin|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state.*\.pth")
EXPORT_AGAIN = (
    "Export the Stage 2 adapter again with `model.save_pretrained(folder)`, and give that with --adapter-path."
)
CONVERT = (
    "Where you trust it, load it with PEFT and save it again: `model.save_pretrained(folder)` writes safetensors. "
    "Give that folder with --adapter-path."
)
IT_RUNS = "Such a file is a Python pickle: opening it can run any program."


def shown(path: Path) -> str:
    """A path as it may be written to a terminal."""
    return visible_line(str(path), 400)


def few(names: list[str], limit: int = 3) -> str:
    """The first of many names that came from a file, in one line."""
    return ", ".join(visible_line(name, 120) for name in names[:limit]) + (", …" if len(names) > limit else "")


def refuse_pickles(folder: Path) -> list[str]:
    """Names of a trainer's leftovers, which stay unopened. Raises UnsafeError for weights in a pickle."""
    names = [path.name for path in folder.iterdir()]
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    weights = [name for name in pickles if not NEVER_OPENED.fullmatch(name)]
    if weights:
        raise pickled(shown(folder), weights, beside=ADAPTER_WEIGHTS in names)
    return pickles


def pickled(where: str, weights: list[str], *, beside: bool) -> UnsafeError:
    """The refusal of weights in pickles, alone or `beside` the safetensors file."""
    if beside:
        return UnsafeError(
            f"The adapter {where} holds {few(weights)} beside {ADAPTER_WEIGHTS}.",
            f"{IT_RUNS} Other programs take it in place of the safetensors file.",
            f"Remove it: {ADAPTER_WEIGHTS} is all that is needed.",
        )
    return UnsafeError(f"The adapter {where} has its weights in {few(weights)} alone.", IT_RUNS, CONVERT)


def open_in(folder: Path, name: str) -> BinaryIO:
    """A regular file of the folder, opened for reading. Raises PreconditionError where there is none, UnsafeError for a link
    that leads out of the folder (those of the Hub's own cache, to its `blobs`, apart) and for what is no regular file.
    """
    path = folder / name
    if not os.path.lexists(path):
        raise PreconditionError(f"There is no {name} in {shown(folder)}.", *_without(folder, name))
    if _leaves(path, folder):
        raise UnsafeError(
            f"{shown(path)} is a link out of the folder, to {shown(Path(path.readlink()))}.",
            "A folder that came from elsewhere could name any file of this machine so, and what a link names can change "
            "while the folder stays the same.",
            "Put a copy of the file there, or give the folder that it points into with --adapter-path.",
        )
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # O_NONBLOCK: a FIFO must not wait
    except OSError as error:
        raise PreconditionError(
            f"{shown(path)} cannot be read.",
            visible_line(error.strerror or str(error)),
            "Change its mode or its owner.",
        ) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UnsafeError(f"{shown(path)} is no regular file.", "An adapter is made of plain files.", EXPORT_AGAIN)
    return os.fdopen(file, "rb")


def _leaves(path: Path, folder: Path) -> bool:
    if not path.is_symlink():
        return False
    if path.resolve().is_relative_to(folder.resolve()):
        return False
    of_the_cache = (
        folder.parent.parent / "blobs"
    )  # models--owner--name/snapshots/<commit>/ and models--owner--name/blobs/
    target = Path(os.path.normpath(path.parent / path.readlink()))
    return not (folder.parent.name == "snapshots" and target.parent == of_the_cache)


def newest_checkpoint(folder: Path) -> Path | None:
    """Of `checkpoint-N` in a trainer's folder, the one with the most steps that holds an adapter; None where none does."""
    found = [(int(name[1]), path) for path in folder.iterdir() if (name := _CHECKPOINT.fullmatch(path.name))]
    return next((path for _, path in sorted(found, reverse=True) if (path / ADAPTER_WEIGHTS).is_file()), None)


_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")


def _without(folder: Path, name: str) -> tuple[str, str]:
    """Why a missing file matters, and what to do about it."""
    newest = newest_checkpoint(folder)
    if newest is not None:
        return (
            "It is the folder of a training: the adapters are in its checkpoints.",
            f"Give the newest of them: --adapter-path {shown(newest)}",
        )
    if name != ADAPTER_WEIGHTS:
        return "Without the adapter's configuration its weights mean nothing.", EXPORT_AGAIN
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"It has {few(others)}: a whole model, or a part of one, is no adapter.", EXPORT_AGAIN
    return "It holds the adapter's weights.", EXPORT_AGAIN
