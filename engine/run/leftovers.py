"""Remove what killed processes left in a run: temporary files that were never renamed to their final names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from engine.run.folder import Run
from engine.storage.files import PART_NAME


def remove_leftovers(run: Run) -> None:
    """Remove what `write_atomically` left in the run folder, and next to it under the archive's name. Only the run's owner may
    call this.

    Files that a live process is writing, such as a stop request, are kept.
    """
    for path in _temporary_files(run):
        found = PART_NAME.fullmatch(path.name)
        if found is not None and path.is_file() and not psutil.pid_exists(int(found["pid"])):
            path.unlink(missing_ok=True)


def _temporary_files(run: Run) -> Iterator[Path]:
    yield from run.folder.rglob(".*.part")
    archive_part = re.compile(re.escape(f".{run.archive.name}") + r".*\.part")
    yield from (path for path in run.folder.parent.glob(".*.part") if archive_part.fullmatch(path.name))
