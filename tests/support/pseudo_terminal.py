"""A program on a pseudo-terminal: its raw bytes, what they make of a screen, and a person who types, hangs up or stops reading.

Pilot sees neither escape sequences nor signals nor a terminal that goes away: this does.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyte

ROOT = Path(__file__).parents[2]
WIZARD = [sys.executable, "-m", "tui.cli"]
OF_ANOTHER_TERMINAL = frozenset(
    {"TMUX", "STY", "NO_COLOR", "COLORTERM", "LC_ALL", "LC_CTYPE", "LANG", "COLUMNS", "LINES"}
)
LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"
LEAVES_MOUSE = b"\x1b[?1003l"
_KITTY = re.compile(rb"\x1b\[[<>][\d;]*u")
"""Sequences that the emulator would show as letters."""


AT_ONCE = 1 << 16
"""Bytes."""


class PseudoTerminal:
    """Runs `command` on a pseudo-terminal. `seen` has all output; `text` is the visible screen."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, rows: int = 24, cwd: Path = ROOT, **environment: str
    ) -> None:
        self.seen = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            ours = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_TERMINAL}
            os.chdir(cwd)
            # Not execvp: readline tells the C library alone of COLUMNS and LINES, and they would go on from there.
            os.execvpe(
                command[0],
                list(command),
                {**ours, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment},
            )
        self.resize(columns, rows)

    # -- what comes ---------------------------------------------------------------------------------------------------

    def read(self, seconds: float) -> bool:
        """Wait this many seconds for output, and read what there is; False if the program has closed the terminal."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, AT_ONCE)
        except OSError:
            return False
        # The kernel hands out 4 KiB, and a screen has ten times as much: whoever looks after each piece looks ten times.
        while len(data) < AT_ONCE and select.select([self.master], [], [], 0)[0]:
            try:
                more = os.read(self.master, AT_ONCE)
            except OSError:  # closed: the next call tells
                break
            data += more
        self.seen += data
        before, left, after = _KITTY.sub(b"", data).partition(LEAVES_ALTERNATE_SCREEN)
        self._stream.feed(before)
        if left:  # the emulator has only one screen: the earlier content is lost, but so is what was drawn
            self._screen.reset()
            self._stream.feed(after)
        return bool(data)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def wait_for(self, text: str, seconds: float = 40) -> None:
        """Wait until the text is visible."""
        self.until(lambda: text in self.text, text, seconds)

    def until(self, holds: Callable[[], object], what: str = "it", seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, (
                f"{what!r} did not come about; the screen is\n{self.text}\n{self.seen[-200:]!r}"
            )
            self.read(0.1)

    # -- what a person does -------------------------------------------------------------------------------------------

    def press(self, keys: str | bytes) -> None:
        os.write(self.master, keys.encode() if isinstance(keys, str) else keys)

    def escape(self) -> None:
        """Press Esc, with the pause that distinguishes it from an escape sequence."""
        self.press("\x1b")
        self.rest(0.4)

    def rest(self, seconds: float) -> None:
        """Keep reading for this long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read(0.05)

    def paste(self, text: str) -> None:
        self.press(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def hang_up(self) -> None:
        """Close the terminal, like a dropped connection."""
        os.close(self.master)

    # -- the processes ------------------------------------------------------------------------------------------------

    def end(self, seconds: float = 30) -> int:
        """Wait for the exit code, reading on, because a program that cannot write cannot exit."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self.read(0.05) and select.select([self.master], [], [], 0)[0]:
                    pass
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it did not end; the screen is\n{self.text}")

    @property
    def child(self) -> psutil.Process:
        """The process that draws and computes; the first one only waits for it."""
        (found,) = psutil.Process(self.pid).children()
        return found

    def kill(self) -> None:
        """Kill whatever is left."""
        if psutil.pid_exists(self.pid):
            for process in (*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)):
                process.send_signal(signal.SIGKILL)


def demo(folder: Path, *arguments: str) -> list[str]:
    """The wizard over a demo run in `folder`."""
    return [*WIZARD, "--demo", "--output-dir", str(folder), *arguments]
