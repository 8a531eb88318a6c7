"""Read an untrusted file in a child process first, so that a C++ or Rust library that crashes or hangs does not end the run.

The child gets the open file as its standard input, so neither its name nor its existence matters. A Python exception in the
child is not a crash: the code that reads the file afterwards reports it better.
"""

from __future__ import annotations

import logging
import os
import sys
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from engine.core.errors import UnsafeError
from engine.core.reading import open_file
from engine.process.children import run_child
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line

CHECK_SECONDS = 120.0
"""After this, the child counts as hanging. A normal check ends long before."""
CHECK_MEMORY_BYTES = 8 << 30
"""The limit on the child's address space."""
READY = "ready"
"""The child prints this before it opens the file."""

# Libraries reserve address space for every thread; with many cores, that is more than CHECK_MEMORY_BYTES.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)
_checked: set[tuple[int, int, int, int]] = set()


def check_in_child(
    module: str, library: str, file: BinaryIO, name: str, *, remedy: str, stop: StopToken | None = None
) -> None:
    """Run `crash_check()` of `module` on the file in a child process. A file that has not changed is checked only once.

    library   the library that the child imports before its memory is limited
    name      the name of the file, for the error
    remedy    what to do about a file that crashes its library

    Raises UnsafeError if the child was killed by a signal or hung.
    """
    status = os.fstat(file.fileno())
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if version in _checked:
        return
    code = f"from {__name__} import prepare_child; prepare_child({library!r}); from {module} import crash_check; crash_check()"
    result = run_child(
        [sys.executable, "-c", code], limit_seconds=CHECK_SECONDS, cwd=_ROOT, extra=_ONE_THREAD, stdin=file, stop=stop
    )
    if READY not in result.output:  # the library or this machine is at fault, not the file
        log.warning("%s was not checked in a child process: %s", visible_line(name, 200), result.ending)
        return
    if result.timed_out or result.killed_by:
        raise UnsafeError(
            f"{visible_line(name, 200)} {'hangs' if result.timed_out else 'crashes'} the library that reads it.",
            f"A child process read it first: {result.ending}. The file is damaged, or was made to do this.",
            remedy,
        )
    _checked.add(version)


# -- in the child ------------------------------------------------------------------------------------------------------


def checked_file() -> BufferedReader:
    """The file to check, from its beginning, with a file offset of its own."""
    return open_file(Path("/proc/self/fd/0"), follow_links=True)


def prepare_child(library: str) -> None:
    """Import `library` and print `READY`; then disable core dumps and limit the memory to what a legitimate file needs."""
    import resource
    from importlib import import_module

    import_module(library)
    print(READY, flush=True)
    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, CHECK_MEMORY_BYTES)):
        _, hard = resource.getrlimit(kind)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))
