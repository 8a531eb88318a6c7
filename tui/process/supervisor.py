"""Two processes from one command, so that the wizard can leave the terminal without leaving the run.

The command forks before anything heavy is imported: the child is the wizard with the engine in its threads, and the parent
only waits. When the user leaves the screen while the run continues, the child starts its own session, out of reach of the
terminal's hang-up, and notifies the parent, which exits: the shell gets its prompt back. Nothing is handed over or restarted.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType

LEFT = b"L"


class Detacher:
    """Detaches the child from the terminal."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe

    def detach(self) -> None:
        """Detach from the terminal; the shell gets its prompt back. Works once; afterwards, nothing can be shown."""
        if self._pipe is None:
            return
        if os.getpgrp() != os.getpid():
            os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(null, file)
        os.close(null)
        try:
            os.write(self._pipe, LEFT)
        except BrokenPipeError:  # the parent exited with the terminal
            open_pipe = None
        else:
            open_pipe = self._pipe
        if open_pipe is not None:
            os.close(open_pipe)
        self._pipe = None


def supervise(child: Callable[[Detacher], int], farewell: Callable[[int], None]) -> int:
    """Run `child` in a child process and return its exit code; if it detaches, call `farewell(pid)` and return 0.

    Must be called while the process has only one thread.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        return child(Detacher(write))
    os.close(write)
    return _Parent(pid, read, farewell).wait()


class _Parent:
    def __init__(self, pid: int, pipe: int, farewell: Callable[[int], None]) -> None:
        self._pid, self._pipe, self._farewell = pid, pipe, farewell
        self._hung_up = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._forward)
        signal.signal(signal.SIGHUP, self._handle_hang_up)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well

    def wait(self) -> int:
        while True:
            ready, _, _ = select.select([self._pipe, self._wake_read], [], [])
            if self._pipe in ready:
                if os.read(self._pipe, 1) == LEFT:
                    if self._hung_up:
                        return 128 + signal.SIGHUP
                    self._farewell(self._pid)
                    return 0
                return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) & 0xFF
            os.read(self._wake_read, 512)
            self._suspend_with_child()

    def _suspend_with_child(self) -> None:
        """Ctrl+Z suspends only the child: suspend this process, too, so that the shell notices, and resume the child later."""
        pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(self._pid, signal.SIGCONT)
        elif pid:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)

    def _forward(self, number: int, _: FrameType | None) -> None:
        os.kill(self._pid, number)

    def _handle_hang_up(self, number: int, _: FrameType | None) -> None:
        self._hung_up = True
        os.kill(self._pid, number)
