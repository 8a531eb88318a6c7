"""Ctrl+z: the shell gets its terminal back, what runs goes on, and fg brings the screen back.

An ordinary ctrl+z would stop the process, and so the training in its threads. Here the job's other processes stop, which is
what the shell sees; the one that works only puts its screen aside. It comes back when the terminal is its job's again, and
not before it was somebody else's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.timer import Timer

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

LOOK_SECONDS = 0.15
NOBODY_SECONDS = 1.5
"""Nobody took the terminal in this time: there is no shell with jobs."""


class Suspend:
    def __init__(self, wizard: WizardApp) -> None:
        self._wizard = wizard
        self._timer: Timer | None = None
        self._since = 0.0
        self._taken = False

    def suspend(self) -> None:
        """Put the screen aside. Without a terminal of its own there is none to give back."""
        driver = self._wizard.terminal_driver
        if driver is None or driver.aside:
            return
        source = self._wizard.source
        works = source.running and not source.read_only
        driver.suspend("The run goes on. fg brings the screen back." if works else "")
        driver.stop_the_job(but_this_process=works)
        if not works:  # it was stopped with the rest, and is back
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
                self._wizard.notify_user("There is no shell to go back to.")
            self._come_back()

    def _come_back(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        driver = self._wizard.terminal_driver
        assert driver is not None
        driver.resume()
        self._wizard.tick_soon()
