"""Signals that all processes of a job get at once, from Slurm, a container or a session that ends.

The run hears them, and tells its children when to stop: a child that ended by itself would take away what the run saves.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


@contextmanager
def job_signals_blocked() -> Iterator[None]:
    """A child that is started here, and what it starts, never gets these signals, unless it asks for them.

    A handler of the child's own could not do that: there is none until its libraries are imported, and they set others.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_signals_only() -> None:
    """Of these signals let only those of the parent process end this one. Call it before there is a second thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    Thread(target=_wait_for_the_parent, name="signals", daemon=True).start()


def _wait_for_the_parent() -> None:
    while (heard := signal.sigwaitinfo(JOB_SIGNALS)).si_pid != os.getppid():
        log.info("%s is for the process that started the job; this one goes on", signal.Signals(heard.si_signo).name)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)
    os.kill(os.getpid(), signal.SIGTERM)
