"""End a child process and all its descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

GRACE_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_SECONDS = 0.025
MARK = "CHILD_OF_STAGE3"
"""An environment variable with a unique value per child, which descendants inherit even in another session. (It does not begin
with STAGE3_, which would make it an option.)"""


def end_child(child: subprocess.Popen[bytes], mark: str) -> int:
    """End a child and everything that it started: SIGTERM to its group, then SIGKILL to the rest and to processes that left the
    group. Returns the exit status.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    if not has_exited(child):
        os.killpg(child.pid, signal.SIGTERM)
        while not has_exited(child) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    os.killpg(child.pid, signal.SIGKILL)  # the unreaped child keeps the group alive
    _kill_marked(f"{MARK}={mark}".encode())
    code = child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    return code


def _kill_marked(mark: bytes) -> None:
    """Send SIGKILL to every process with `mark` in its environment, until none is left: one may start another meanwhile."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := [pid for pid in _pids() if mark in _environment_of(pid)]) and time.monotonic() < deadline:
        for pid in found:
            try:
                process = os.pidfd_open(pid)
            except OSError:  # it has ended
                continue
            try:
                if mark in _environment_of(pid):  # the pid was not reused before its descriptor was opened
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                os.close(process)
        time.sleep(POLL_SECONDS)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def _environment_of(pid: int) -> list[bytes]:
    """The initial environment of a process; empty for zombies and for other users' processes."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def has_exited(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has exited. It is not reaped, because the group id of a zombie cannot be reused."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def describe_exit(code: int | None) -> str:
    """How a process ended, as the rest of a sentence: "ended by SIGKILL, …"."""
    if code is None or code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    return f"by {name}" + (", as the kernel does if memory runs out" if name == "SIGKILL" else "")
