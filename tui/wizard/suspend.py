"""Ctrl+Z: return the terminal to the shell while the run continues; fg brings the screen back.

An ordinary Ctrl+Z would stop the process, and with it the training threads. Here the job's other processes stop, which is
what the shell sees, and the working one only suspends its screen. It resumes when its job has the terminal again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.timer import Timer

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

LOOK_SECONDS = 0.15
NOBODY_SECONDS = 1.5
"""Seconds to wait for a shell with job control to take the terminal."""


class Suspend:
    def __init__(self, wizard: WizardApp) -> None:
        self._wizard = wizard
        self._timer: Timer | None = None
        self._since = 0.0
        self._taken = False

    def suspend(self) -> None:
        """Suspend the screen. Does nothing without a terminal."""
        driver = self._wizard.terminal_driver
        if driver is None or driver.aside:
            return
        source = self._wizard.source
        works = source.running and not source.read_only
        driver.suspend("The run continues. fg brings the screen back." if works else "")
        driver.stop_the_job(but_this_process=works)
        if not works:  # it was stopped with the job, and has resumed
            self._come_back()
            return
        self._since, self._taken = time.monotonic(), False
        self._timer = self._wizard.set_interval(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        driver = self._wizard.terminal_driver
        if driver is None:
            return
        if not driver.in_foreground:
            self._taken = True
        elif self._taken or time.monotonic() - self._since > NOBODY_SECONDS:
            if not self._taken:
                self._wizard.notify_user("No shell to return to.")
            self._come_back()

    def _come_back(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        driver = self._wizard.terminal_driver
        assert driver is not None
        driver.resume()
        self._wizard.tick_soon()
