"""The end of a child, and of all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

GRACE_SECONDS = 5.0
"""Between TERM and KILL."""
POLL_SECONDS = 0.025
MARK = "CHILD_OF_STAGE3"
"""A variable with a value of its own for every child. Grandchildren inherit it, whatever session they went to. (It does not
begin as an option's does.)"""


def end_child(child: subprocess.Popen[bytes], mark: str) -> int:
    """Make an end of all that the child started: TERM to its group, then KILL for what is left, and for what left the
    group. Returns the exit status.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    if not has_exited(child):
        os.killpg(child.pid, signal.SIGTERM)
        while not has_exited(child) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    os.killpg(child.pid, signal.SIGKILL)  # the unreaped child is in the group, so the group is there
    _kill_marked(f"{MARK}={mark}".encode())
    code = child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    return code


def _kill_marked(mark: bytes) -> None:
    """KILL every process with `mark` in its environment, until there is none: one may start another meanwhile."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := [pid for pid in _pids() if mark in _environment_of(pid)]) and time.monotonic() < deadline:
        for pid in found:
            try:
                process = os.pidfd_open(pid)
            except OSError:  # it has ended
                continue
            try:
                if mark in _environment_of(pid):  # still the same one: its descriptor is held now
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                os.close(process)
        time.sleep(POLL_SECONDS)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def _environment_of(pid: int) -> list[bytes]:
    """As it was when the process began; empty for a zombie, and for what belongs to others."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def has_exited(child: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: as long as it is a zombie its group's number cannot be given to strangers."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
