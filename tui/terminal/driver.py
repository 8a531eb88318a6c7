"""Textual's Linux driver for long runs: a stalled terminal never blocks, a suspended screen draws nothing, and input that is not
text never ends the app.

The only module that uses private names of Textual's driver (8.2): `_writer_thread` and its queue, and its input decoder.
"""

from __future__ import annotations

import codecs
import os
import signal
import time
from functools import partial
from queue import Full
from typing import Any, TextIO

from textual.drivers import linux_driver
from textual.drivers.linux_driver import LinuxDriver

ENOUGH_ROOM = 5
"""Length of the writer's queue at which the terminal counts as reading again."""
LAST_WRITES_SECONDS = 1.0
"""How long the end of the screen waits for a terminal that does not read."""


def _decoder(name: str) -> Any:
    """X10 mouse reports contain bytes that are not UTF-8, on which Textual would crash (Textualize/textual#6696)."""
    return partial(codecs.getincrementaldecoder(name), errors="replace")


class WizardDriver(LinuxDriver):
    """Writes never wait. Frames for a stalled terminal are dropped, and `missed` requests a full redraw."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        setattr(linux_driver, "getincrementaldecoder", _decoder)  # noqa: B010 (a name that it imports)
        super().__init__(*arguments, **options)
        self.aside = False
        """The terminal is in use by another program at the moment."""
        self.missed = False
        """Output was dropped, so the terminal is out of date."""
        self._drawing = False
        self._waits_until = 0.0

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: str) -> None:
        if self.aside or self._writer_thread is None:
            self.missed = True
            return
        try:
            self._writer_thread._queue.put(data, timeout=max(self._waits_until - time.monotonic(), 1e-6))
        except Full:
            self.missed = True

    @property
    def reads(self) -> bool:
        """Whether the terminal is reading our output."""
        return not self.aside and self._writer_thread is not None and self._writer_thread._queue.qsize() <= ENOUGH_ROOM

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self._drawing = self._writer_thread is not None

    def stop_application_mode(self) -> None:
        if self._drawing:  # once: an app that ends while its screen is aside has nothing to take back
            self._waits_until = time.monotonic() + LAST_WRITES_SECONDS  # these must not be dropped
            super().stop_application_mode()
            self._drawing = False

    def close(self) -> None:
        """End the writer thread; if it is stuck in a write that nobody reads, abandon it."""
        writer, self._writer_thread = self._writer_thread, None
        if writer is None:
            return
        try:
            writer._queue.put(None, timeout=LAST_WRITES_SECONDS)
        except Full:
            return
        writer.join(LAST_WRITES_SECONDS)

    # -- aside: the shell has the terminal, what runs goes on ---------------------------------------------------------

    def suspend(self, farewell: str) -> None:
        """Restore the terminal and print a line on it; output is discarded from now on."""
        self.suspend_application_mode()
        self.aside = True
        if farewell:
            self._out.write(farewell + "\n")
            self._out.flush()

    def stop_the_job(self, *, but_this_process: bool) -> None:
        """Stop the processes of this job, so that its shell takes the terminal back; `but_this_process` keeps running.

        Without a job-control shell the kernel stops none (an orphaned process group). Without `but_this_process` it
        returns when the job is resumed.
        """
        if not but_this_process:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._sigtstp_application)

    def resume(self) -> None:
        """Resume drawing. The whole screen must be redrawn."""
        self.aside = False
        self.resume_application_mode()
        self.missed = True

    @property
    def terminal_file(self) -> int:
        """The file that the screen is written to."""
        return self._out.fileno()

    @property
    def _out(self) -> TextIO:
        assert self._file is not None, "Textual draws to a file, and has one"
        return self._file

    @property
    def in_foreground(self) -> bool:
        """Whether this job is in the terminal's foreground."""
        try:
            return os.tcgetpgrp(self.fileno) == os.getpgrp()
        except OSError:
            return False

    def _sigtstp_application(self, *_: object) -> None:
        if not self.aside:
            super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        """Textual would draw at once, but the signal may come from the shell's `bg`."""
        if not self.aside:
            super()._sigcont_application()
