"""Lets one process at a time write to a file of decisions: the wizard, a second terminal (`attach`), or the stage that carries
decisions over.

The file itself is locked (flock), and the lock counts only while that file is at its path: a process that replaces the file
holds the lock on the old one, and a process that waited for the old one then opens the new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.core.errors import DiskError
from engine.security.sanitize import visible_line
from engine.storage.jsonl import open_for_append

MAX_SECONDS = 5.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without locks, where simultaneous writers cannot be kept apart."""
_RETRY_SECONDS = 0.01


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the lock on `path`, which is created if missing. Raises DiskError if another process keeps the lock for too long,
    and as `open_for_append`.
    """
    end = time.monotonic() + MAX_SECONDS
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_for_append(path)
    try:
        while not (_locked(file) and _is_at(path, file)):
            if time.monotonic() > end:
                raise DiskError(
                    f"{visible_line(str(path))} has been locked by another process for over {MAX_SECONDS:.0f} seconds.",
                    "That process may be stopped or stuck.",
                    "End it, then try again.",
                )
            time.sleep(_RETRY_SECONDS)
            os.close(file)
            file = -1
            file = open_for_append(path)
        yield
    finally:
        if file >= 0:
            os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
