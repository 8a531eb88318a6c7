"""Signals that go to all processes of a job at once, from Slurm, a container or a session that ends.

Only the run itself reacts to them, and then stops its children: a child that ended on its own would lose what the run is
about to save.
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
    """Block these signals for children started in this context, and for their descendants, unless they unblock them.

    A handler in the child would not be enough: it is installed only after the imports, and libraries replace it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_signals_only() -> None:
    """Let these signals end this process only if its parent sends them. Call this before starting a second thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    Thread(target=_wait_for_parent_signal, name="signals", daemon=True).start()


def _wait_for_parent_signal() -> None:
    while (received := signal.sigwaitinfo(JOB_SIGNALS)).si_pid != os.getppid():
        log.info("ignored %s, which did not come from the parent process", signal.Signals(received.si_signo).name)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)
    os.kill(os.getpid(), signal.SIGTERM)
