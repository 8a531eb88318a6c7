"""The wizard on a real pseudo-terminal: raw bytes, signals, a terminal that goes away."""

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
from pathlib import Path

import psutil
import pytest

from engine.run import Run

ROOT = Path(__file__).parents[1]
LEAVES_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"


class Terminal:
    """`stage3-tui` in a pseudo-terminal of 80x24."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder, self.seen = folder, b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", PYTHONPATH=str(ROOT), **environment)
            os.chdir(ROOT)
            command = [sys.executable, "-m", "tui.cli", "--demo", "--output-dir", str(folder), *arguments]
            os.execv(command[0], command)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def wait_for(self, text: bytes, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come; the last bytes are {self.seen[-400:]!r}"
            self.read(0.2)

    def read(self, seconds: float) -> bool:
        """Take what the program wrote; False when it has closed the terminal."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                return False
            self.seen += data
            return bool(data)
        return True

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self, seconds: float = 20) -> int:
        """The exit code; reads on, because a program that cannot write cannot end."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self.read(0.05) and select.select([self.master], [], [], 0)[0]:
                    pass
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")


@pytest.fixture
def terminal(tmp_path: Path):
    opened = Terminal(tmp_path / "run")
    opened.wait_for(b"Workspace")
    yield opened
    for process in (
        (psutil.Process(opened.pid), *psutil.Process(opened.pid).children()) if psutil.pid_exists(opened.pid) else ()
    ):
        process.kill()


def test_q_leaves_a_clean_terminal_and_the_run_free(terminal: Terminal):
    terminal.press("q")
    assert terminal.end() == 0
    assert LEAVES_ALTERNATE_SCREEN in terminal.seen and SHOWS_CURSOR in terminal.seen
    assert Run(terminal.folder).owner() is None


def test_sigterm_restores_the_terminal_and_exits_143(terminal: Terminal):
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 143
    assert LEAVES_ALTERNATE_SCREEN in terminal.seen and SHOWS_CURSOR in terminal.seen


def test_a_closed_terminal_ends_an_idle_wizard_and_nothing_spins(terminal: Terminal):
    (wizard,) = psutil.Process(terminal.pid).children()
    os.close(terminal.master)
    _, gone = psutil.wait_procs([wizard], timeout=10)
    assert not gone
    os.waitpid(terminal.pid, 0)


def test_a_closed_terminal_leaves_the_run_running_and_stop_ends_it(tmp_path: Path):
    from engine.names import STOP_REQUEST

    opened = Terminal(tmp_path / "run")
    opened.wait_for(b"Workspace")
    (wizard,) = psutil.Process(opened.pid).children()
    opened.press("a")
    opened.wait_for(b"Compares installed")
    os.close(opened.master)
    os.waitpid(opened.pid, 0)
    time.sleep(1.0)
    run = Run(tmp_path / "run")
    owner = run.owner()
    assert owner is not None and owner["pid"] == wizard.pid
    (run / STOP_REQUEST).touch()
    _, alive = psutil.wait_procs([wizard], timeout=40)
    assert not alive
    run.reload()
    assert "stopped" in {stage["status"] for stage in run.manifest["stages"].values()}


def test_no_color_gives_no_colour_at_all(tmp_path: Path):
    opened = Terminal(tmp_path / "run", NO_COLOR="1")
    opened.wait_for(b"Workspace")
    opened.press("9q")
    assert opened.end() == 0
    codes = {code for sgr in re.findall(rb"\x1b\[([\d;]*)m", opened.seen) for code in sgr.split(b";")}
    colours = {str(n).encode() for n in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108))}
    assert codes and not codes & colours


def test_without_a_terminal_it_says_what_to_use(tmp_path: Path):
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "tui.cli", "--demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and "--auto" in done.stderr
