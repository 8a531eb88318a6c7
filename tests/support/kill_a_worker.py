"""SIGKILL to one of the processes that share a long job."""

from __future__ import annotations

import psutil

from engine.stages.pair_processes import WORKER


def kill_a_worker() -> None:
    """The first one that this process started. It may have other children: a server of processes, for one."""
    next(child for child in psutil.Process().children() if WORKER in child.cmdline()).kill()
