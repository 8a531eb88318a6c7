"""What processes that were killed left in a run: files written aside, which never got their name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from engine.run.folder import Run
from engine.storage.files import PART_NAME


def remove_leftovers(run: Run) -> None:
    """Remove what `write_atomically` left in the run folder, and beside it under the archive's name. For the run's owner alone.

    What a process that lives is writing (a request to stop) is left to it.
    """
    for path in _written_aside(run):
        found = PART_NAME.fullmatch(path.name)
        if found is not None and path.is_file() and not psutil.pid_exists(int(found["pid"])):
            path.unlink(missing_ok=True)


def _written_aside(run: Run) -> Iterator[Path]:
    yield from run.folder.rglob(".*.part")
    of_the_archive = re.compile(re.escape(f".{run.archive.name}") + r".*\.part")
    yield from (path for path in run.folder.parent.glob(".*.part") if of_the_archive.fullmatch(path.name))
