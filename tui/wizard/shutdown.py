"""End the screen on q, a signal or a lost terminal, and decide whether the run continues."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from engine.core.errors import ExitCode, Stage3Error
from tui.process.signals import StopSignals
from tui.runs.run_source import WizardEnd
from tui.terminal import sequences

if TYPE_CHECKING:
    from tui.app_protocol import WizardApp

TERMINAL_SECONDS = 2.0
"""Seconds between checks that the terminal still exists."""
REQUESTED_HERE = "requested in the wizard"


class Shutdown:
    """Decides when the wizard exits, and how."""

    def __init__(self, wizard: WizardApp) -> None:
        self._wizard, self._source = wizard, wizard.source
        self._leaving: WizardEnd | None = None
        self._confirming = False
        """Whether the dialog of `confirm_quit` is open."""
        self._signals = StopSignals()
        self._parent_pid = os.getppid()
        self.stopping = ""
        """The note to show in the title while the run stops; otherwise empty."""

    def install_signal_handlers(self) -> None:
        """Handle signals, and watch the terminal. Call it in the event loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        for number, code in ((signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGINT, ExitCode.INTERRUPTED)):
            loop.add_signal_handler(number, self.by_signal, signal.Signals(number).name, code)
        self._wizard.set_interval(TERMINAL_SECONDS, self._check_terminal)

    def exit_if_finished(self, running: bool) -> bool:
        """Exit if the screen is to end and the run has stopped."""
        wizard = self._wizard
        if running:
            return False
        self.stopping = ""
        if self._leaving is None and getattr(self._source, "restart_until", None) is not None:
            wizard.exit(WizardEnd.RESTARTS)
        elif self._leaving is not None:
            wizard.exit(self._leaving, return_code=wizard.return_code or 0)
        elif self._confirming:  # the run ended before the answer: q quits, as it does when nothing is running
            wizard.exit(WizardEnd.FINISHED)
        else:
            return False
        return True

    def confirm_quit(self) -> None:
        """q: quit; ask first if the run is active."""
        from tui.screens.dialogs import Answer, Question

        if self._source.read_only or not self._source.running:
            self._wizard.exit(WizardEnd.FINISHED)
            return
        answers = (
            Answer("l", "leave it running", "stage3-tui attach shows it again"),
            Answer("s", "stop and save", "finish the step, write everything, then quit"),
            Answer("b", "cancel", "return to the screen"),
        )

        def answered(answer: str | None) -> None:
            self._confirming = False
            if answer == "l":
                self._wizard.exit(WizardEnd.LEFT_RUNNING)
            elif answer == "s":
                self._leaving = WizardEnd.STOPPED
                self.stop(REQUESTED_HERE)

        self._confirming = True
        self._wizard.push_screen(Question("The run is active", "Stop it, or leave it running?", answers), answered)

    def stop(self, reason: str, exit_code: ExitCode = ExitCode.TERMINATED) -> None:
        """Ask the run to save and stop; the screen stays unless the user asked to quit."""
        try:
            self._source.stop(reason, exit_code)
        except (OSError, Stage3Error) as error:
            self._wizard.notify_user(f"Cannot stop the run: {error}", "error")
            return
        self.stopping = "stopping: finishing the step, saving"
        self._wizard.tick_soon()

    def hang_up(self) -> None:
        """The terminal is gone: end the screen, continue the run."""
        if self._source.running and not self._source.read_only and self._leaving is None:
            self._wizard.exit(WizardEnd.LEFT_RUNNING)
        else:
            self._wizard.exit(self._leaving or WizardEnd.HUNG_UP, return_code=int(ExitCode.HANGUP))

    def by_signal(self, name: str, code: ExitCode) -> None:
        """Stop, save and leave; a second time, leave at once."""
        second = self._signals.is_second(name)
        if second or self._source.read_only or not self._source.running:
            self._wizard.exit(WizardEnd.STOPPED, return_code=int(code))
            return
        self._leaving = WizardEnd.STOPPED
        self.stop(name, code)

    def _check_terminal(self) -> None:
        if sequences.in_browser():  # there is a pipe instead of a terminal: only the server can go away
            if os.getppid() != self._parent_pid:
                self.hang_up()
            return
        input_file = sequences.standard_input()
        if input_file is None or sequences.terminal_is_gone(input_file, self._parent_pid):
            self.hang_up()
