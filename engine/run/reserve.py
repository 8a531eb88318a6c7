"""Room on the disk for the last words of a run: a full disk must not keep a run from saying that it is full.

While a process works on a run, the folder has a file of a few hundred kilobytes that is of no use. If the disk is full, it is
removed, and `run.json`, the journal and the log have that room.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from engine.core.system_errors import MEANINGS

BYTES = 256 << 10

log = logging.getLogger(__name__)


def keep_reserve(path: Path) -> None:
    """Have the reserve at `path`. Raises OSError, for a full disk among other things."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(file, 0, BYTES)
    except OSError as error:
        if error.errno in MEANINGS:
            path.unlink()
            raise
        log.info("no room is kept for a full disk: %s", error)  # a file system that cannot
    finally:
        os.close(file)


def give_up_reserve(path: Path) -> None:
    """What cannot be removed stays: it does no harm."""
    with suppress(OSError):
        path.unlink()
