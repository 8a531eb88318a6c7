"""Look at a stranger's file in a child first: a library in C++ or Rust that crashes or hangs there takes no run with it.

The child finds the file as its standard input, whatever its name is and whether it still has one. What Python raises in it
is no crash: whoever reads the file then says it better.
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

LOOK_SECONDS = 120.0
"""Until a child that looks counts as hanging. It ends by itself long before."""
LOOK_MEMORY = 8 << 30
"""Bytes of addresses that it may have."""
BEGUN = "looking"
"""What the child says before it opens the file."""

# Libraries reserve addresses for every thread, which on a machine with many cores are more than LOOK_MEMORY.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)
_seen: set[tuple[int, int, int, int]] = set()


def first_look(
    module: str, library: str, file: BinaryIO, name: str, *, mend: str, stop: StopToken | None = None
) -> None:
    """Let `look()` of `module` read the file in a child; once for a file, as long as it stays the same.

    library   that the child imports before its memory is limited
    name      of the file, for the error
    mend      what to do about a file that crashes its library

    Raises UnsafeError if the child was killed by a signal or hung.
    """
    facts = os.fstat(file.fileno())
    same = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if same in _seen:
        return
    code = f"from {__name__} import begin; begin({library!r}); from {module} import look; look()"
    looked = run_child(
        [sys.executable, "-c", code], limit_seconds=LOOK_SECONDS, cwd=_ROOT, extra=_ONE_THREAD, given=file, stop=stop
    )
    if BEGUN not in looked.output:  # the library, or this machine: the file has no part in it
        log.warning("%s was not looked at first: %s", visible_line(name, 200), looked.ending)
        return
    if looked.timed_out or looked.killed_by:
        raise UnsafeError(
            f"{visible_line(name, 200)} {'hangs' if looked.timed_out else 'crashes'} the library that reads it.",
            f"A child process looked at it first: {looked.ending}. Such a file is damaged, or made to do that.",
            mend,
        )
    _seen.add(same)


# -- in the child ------------------------------------------------------------------------------------------------------


def given_file() -> BufferedReader:
    """What is looked at, from its beginning, apart from whoever else has it open."""
    return open_file(Path("/proc/self/fd/0"), follow_links=True)


def begin(library: str) -> None:
    """Import it and say so. From then on there is no core dump, and no more memory than a file needs that is meant to be read."""
    import resource
    from importlib import import_module

    import_module(library)
    print(BEGUN, flush=True)
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, LOOK_MEMORY)):
        _, hard = resource.getrlimit(kind)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (soft, hard))
