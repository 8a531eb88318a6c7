"""Ctrl+Z: return the terminal to the shell while the run continues; fg brings the screen back.

An ordinary Ctrl+Z would stop the process, and with it the training threads. Here the job's other processes stop, which is
what the shell sees, while the one that trains only suspends its screen. It resumes once its job has the terminal again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.timer import Timer

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

POLL_SECONDS = 0.15
SHELL_SECONDS = 1.5
"""Seconds to wait for a shell with job control to take over the terminal."""


class Suspend:
    def __init__(self, wizard: WizardApp) -> None:
        self._wizard = wizard
        self._timer: Timer | None = None
        self._since = 0.0
        self._shell_has_it = False

    def suspend(self) -> None:
        """Suspend the screen. Does nothing without a terminal."""
        driver = self._wizard.terminal_driver
        if driver is None or driver.suspended:
            return
        source = self._wizard.source
        run_active = source.running and not source.read_only
        driver.suspend("The run continues. fg brings the screen back." if run_active else "")
        driver.stop_job(but_this_process=run_active)
        if not run_active:  # this process was stopped with the job, and has resumed
            self._resume()
            return
        self._since, self._shell_has_it = time.monotonic(), False
        self._timer = self._wizard.set_interval(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        driver = self._wizard.terminal_driver
        if driver is None:
            return
        if not driver.in_foreground:
            self._shell_has_it = True
        elif self._shell_has_it or time.monotonic() - self._since > SHELL_SECONDS:
            if not self._shell_has_it:
                self._wizard.notify_user("No shell to return to.")
            self._resume()

    def _resume(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        driver = self._wizard.terminal_driver
        assert driver is not None
        driver.resume()
        self._wizard.tick_soon()
