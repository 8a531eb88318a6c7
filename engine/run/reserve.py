"""Disk space in reserve, so that a run can record and report that the disk is full.

While a process works on a run, its folder holds an unused file of 256 KiB. When the disk is full, the file is removed, which
frees space for `run.json`, the journal and the log.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from engine.core.system_errors import MEANINGS

BYTES = 256 << 10

log = logging.getLogger(__name__)


def create_reserve(path: Path) -> None:
    """Create the reserve at `path`. Raises OSError, for example if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(file, 0, BYTES)
    except OSError as error:
        if error.errno in MEANINGS:
            path.unlink()
            raise
        log.info("no disk space in reserve: %s", error)  # not supported by the file system
    finally:
        os.close(file)


def remove_reserve(path: Path) -> None:
    """Remove the reserve. If that fails it stays, which does no harm."""
    with suppress(OSError):
        path.unlink()
