"""Move a folder in the way aside, never delete it, and report any unpushed work in it."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import engine
from engine.core.errors import PreconditionError
from engine.core.events import Check
from engine.core.users import owner_of
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.workspace.unpushed_work import unpushed_work
from engine.workspace.urls import Source


def refuse_to_move(target: Path, source: Source, run: Run) -> None:
    """Raises PreconditionError for a folder that contains something in use, which would move along with it."""
    real = target.resolve()
    for what, path in (
        ("the current folder", Path.cwd()),
        ("the run folder", run.folder),
        ("your home folder", Path.home()),
        ("the program itself", Path(engine.__file__).resolve().parent),
        ("the repository to clone", Path(source.url) if source.kind == "path" else None),
    ):
        if path is not None and path.resolve().is_relative_to(real):
            raise PreconditionError(
                f"{visible_line(str(target))} is in the way of the clone and contains {what}.",
                "A folder in the way is moved aside, but this one cannot be.",
                "Choose another target with --repo-root, or omit --repo-url to use the folder as it is.",
            )


def move_aside(folder: Path) -> Generator[Check, None, None]:
    """Rename `folder` to a free name beside it, without changing anything in it."""
    number = 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}.aside-{number}")):
        number += 1
    work = unpushed_work(folder)
    try:
        folder.rename(aside)
    except OSError as error:
        raise PreconditionError(
            f"{visible_line(str(folder))} is in the way of the clone, and moving it aside failed.",
            f"{visible_line(str(error))}. It belongs to {owner_of(folder)}.",
            "Move it yourself, or choose another target with --repo-root.",
        ) from error
    was = f"{visible_line(str(folder))} was in the way and is now {visible_line(str(aside))}, unchanged."
    yield Check("moved aside", "warning", f"{was} {work}".strip())
