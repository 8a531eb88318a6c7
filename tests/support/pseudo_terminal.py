"""A program on a pseudo-terminal: its raw output, the resulting screen, and a person who types, hangs up or stops reading.

Unlike Textual's Pilot, this covers escape sequences, signals and a terminal that disappears.
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
from contextlib import suppress
from pathlib import Path

import psutil
import pyte

ROOT = Path(__file__).parents[2]
WIZARD = [sys.executable, "-m", "tui.cli"]
TERMINAL_VARIABLES = frozenset(
    {"TMUX", "STY", "NO_COLOR", "COLORTERM", "LC_ALL", "LC_CTYPE", "LANG", "COLUMNS", "LINES"}
)
LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"
LEAVES_MOUSE = b"\x1b[?1003l"
_KITTY = re.compile(rb"\x1b\[[<>][\d;]*u")
"""Sequences that the emulator would show as letters."""


BLOCK_BYTES = 1 << 16


class PseudoTerminal:
    """Runs `command` on a pseudo-terminal. `seen` is all output so far; `text` is the visible screen."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, rows: int = 24, cwd: Path = ROOT, **environment: str
    ) -> None:
        self.seen = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            ours = {name: value for name, value in os.environ.items() if name not in TERMINAL_VARIABLES}
            os.chdir(cwd)
            # Not execvp: readline sets COLUMNS and LINES only in the C library, from where they would be inherited.
            os.execvpe(
                command[0],
                list(command),
                {**ours, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment},
            )
        self.resize(columns, rows)

    # -- output -------------------------------------------------------------------------------------------------------

    def read(self, seconds: float) -> bool:
        """Wait this many seconds for output, and read it; False if the program has closed the terminal."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, BLOCK_BYTES)
        except OSError:
            return False
        # The kernel returns 4 KiB at a time, and a screen is ten times as large: read it all, so that callers check only once.
        while len(data) < BLOCK_BYTES and select.select([self.master], [], [], 0)[0]:
            try:
                more = os.read(self.master, BLOCK_BYTES)
            except OSError:  # closed, which the next call reports
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
            assert time.monotonic() < end, f"{what!r} did not happen; the screen is\n{self.text}\n{self.seen[-200:]!r}"
            self.read(0.1)

    # -- input --------------------------------------------------------------------------------------------------------

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
        """Wait for the exit code, and keep reading, because a program that cannot write cannot exit."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self.read(0.05) and select.select([self.master], [], [], 0)[0]:
                    pass
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"the program did not end; the screen is\n{self.text}")

    @property
    def child(self) -> psutil.Process:
        """The process that draws and computes; its parent only waits for it."""
        (found,) = psutil.Process(self.pid).children()
        return found

    def kill(self) -> None:
        """Kill all remaining processes."""
        with suppress(psutil.NoSuchProcess):
            program = psutil.Process(self.pid)
            for process in (*program.children(recursive=True), program):
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    process.send_signal(signal.SIGKILL)


def demo(folder: Path, *arguments: str) -> list[str]:
    """The command line of the wizard on a demo run in `folder`."""
    return [*WIZARD, "--demo", "--output-dir", str(folder), *arguments]
