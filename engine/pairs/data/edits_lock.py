"""One writer at a time for a file of decisions: the wizard, a second terminal (`attach`), and the stage that carries them over.

The file itself is locked (flock), and the lock counts only while the file is at its path: whoever replaces the file holds the
lock on the one that goes, and who waits for that one opens the new one.
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
"""Of a file system without locks: then two writers at the same moment are not kept apart."""
_LOOK_SECONDS = 0.01


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Nobody else writes to `path` meanwhile; creates it if it is missing. Raises DiskError if another one goes on for long, and
    as `open_for_append`.
    """
    end = time.monotonic() + MAX_SECONDS
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_for_append(path)
    try:
        while not (_locked(file) and _is_at(path, file)):
            if time.monotonic() > end:
                raise DiskError(
                    f"{visible_line(str(path))} is being written by another process for over {MAX_SECONDS:.0f} seconds.",
                    "It may be stopped or stuck.",
                    "End it, then decide again.",
                )
            time.sleep(_LOOK_SECONDS)
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
