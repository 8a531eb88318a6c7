"""SIGKILL to one of the processes that share a long job."""

from __future__ import annotations

import psutil

from engine.stages.pair_processes import WORKER


def kill_a_worker() -> None:
    """The first one that this process started. It may have other children: a server of processes, for one."""
    next(child for child in psutil.Process().children() if _is_worker(child)).kill()


def _is_worker(child: psutil.Process) -> bool:
    try:
        return WORKER in child.cmdline()
    except psutil.NoSuchProcess:  # it has ended, and nobody has asked how
        return False
