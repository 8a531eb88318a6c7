"""Textual's Linux driver for long runs: a stalled terminal never blocks the app, a suspended screen draws nothing, and input
that is not text never ends the app.

This is the only module that uses private names of Textual's driver (8.2): `_writer_thread` and its queue, and its input
decoder.
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

ALMOST_EMPTY_QUEUE = 5
"""The length of the writer's queue up to which the terminal counts as reading."""
FINAL_WRITE_SECONDS = 1.0
"""Seconds to wait, when the screen ends, for a terminal that does not read."""


def _decoder(name: str) -> Any:
    """X10 mouse reports contain bytes that are not UTF-8 and would crash Textual (Textualize/textual#6696)."""
    return partial(codecs.getincrementaldecoder(name), errors="replace")


class WizardDriver(LinuxDriver):
    """Never waits for a write. Frames for a stalled terminal are dropped, and `needs_redraw` requests a full redraw."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        setattr(linux_driver, "getincrementaldecoder", _decoder)  # noqa: B010 (a name that it imports)
        super().__init__(*arguments, **options)
        self.suspended = False
        """Whether another program is using the terminal."""
        self.needs_redraw = False
        """Whether output was dropped, so that the terminal is out of date."""
        self._drawing = False
        self._wait_until = 0.0

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: str) -> None:
        if self.suspended or self._writer_thread is None:
            self.needs_redraw = True
            return
        try:
            self._writer_thread._queue.put(data, timeout=max(self._wait_until - time.monotonic(), 1e-6))
        except Full:
            self.needs_redraw = True

    @property
    def is_reading(self) -> bool:
        """Whether the terminal is reading our output."""
        return (
            not self.suspended
            and self._writer_thread is not None
            and self._writer_thread._queue.qsize() <= ALMOST_EMPTY_QUEUE
        )

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self._drawing = self._writer_thread is not None

    def stop_application_mode(self) -> None:
        if self._drawing:  # only once: an app that ends while suspended has already restored the terminal
            self._wait_until = time.monotonic() + FINAL_WRITE_SECONDS  # these writes must not be dropped
            super().stop_application_mode()
            self._drawing = False

    def close(self) -> None:
        """End the writer thread; abandon it if it is stuck in a write to a terminal that does not read."""
        writer, self._writer_thread = self._writer_thread, None
        if writer is None:
            return
        try:
            writer._queue.put(None, timeout=FINAL_WRITE_SECONDS)
        except Full:
            return
        writer.join(FINAL_WRITE_SECONDS)

    # -- suspended: the shell has the terminal, and the run continues -------------------------------------------------

    def suspend(self, farewell: str) -> None:
        """Restore the terminal and print a line on it; output is discarded from now on."""
        self.suspend_application_mode()
        self.suspended = True
        if farewell:
            self._out.write(farewell + "\n")
            self._out.flush()

    def stop_job(self, *, but_this_process: bool) -> None:
        """Stop the processes of this job, so that the shell takes the terminal back. With `but_this_process`, this process
        keeps running; otherwise the call returns when the job is resumed.

        Without a job-control shell the kernel stops no process (an orphaned process group).
        """
        if not but_this_process:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._sigtstp_application)

    def resume(self) -> None:
        """Resume drawing. The whole screen must be redrawn."""
        self.suspended = False
        self.resume_application_mode()
        self.needs_redraw = True

    @property
    def terminal_file(self) -> int:
        """The file that the screen is written to."""
        return self._out.fileno()

    @property
    def _out(self) -> TextIO:
        assert self._file is not None, "Textual has a file to draw to"
        return self._file

    @property
    def in_foreground(self) -> bool:
        """Whether this job is the terminal's foreground job."""
        try:
            return os.tcgetpgrp(self.fileno) == os.getpgrp()
        except OSError:
            return False

    def _sigtstp_application(self, *_: object) -> None:
        if not self.suspended:
            super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        """Textual would draw at once, but the signal may come from the shell's `bg`."""
        if not self.suspended:
            super()._sigcont_application()
