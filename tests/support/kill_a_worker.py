"""Sends SIGKILL to one of the worker processes."""

from __future__ import annotations

import psutil

from engine.stages.pair_processes import WORKER


def kill_a_worker() -> None:
    """Kill the first worker of this process, which may have other children, such as a fork server."""
    next(child for child in psutil.Process().children() if _is_worker(child)).kill()


def _is_worker(child: psutil.Process) -> bool:
    try:
        return WORKER in child.cmdline()
    except psutil.NoSuchProcess:  # it has ended but was not reaped
        return False
