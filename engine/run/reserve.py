"""Reserved disk space, so that a run can still record and report that the disk is full.

While a process works on a run, the run folder contains an unused file of 256 KiB. When the disk is full, the file is removed
to make room for `run.json`, the journal and the log.
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
        log.info("cannot reserve disk space: %s", error)  # the file system does not support it
    finally:
        os.close(file)


def remove_reserve(path: Path) -> None:
    """Remove the reserve. If that fails, it stays, which is harmless."""
    with suppress(OSError):
        path.unlink()
