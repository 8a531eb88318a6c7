"""How fast the program answers: `--help`, `--version`, and the wizard's first paint, beside a bare Python and beside what a
program that imports its training stack first would take. Best of N, in one run.

    python bench/start.py
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable

FIRST_WORD = b"Workspace"
"""The wizard is painted when the name of its first stage is on the screen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    program = [sys.executable, "-m", "tui.cli"]
    rows: list[tuple[str, Callable[[], float]]] = [
        ("python -c pass", lambda: wall([sys.executable, "-c", "pass"])),
        ("stage3-tui --version", lambda: wall([*program, "--version"])),
        ("stage3-tui --help", lambda: wall([*program, "--help"])),
        ("wizard, first paint at 80x24", lambda: first_paint([*program, "--demo"], 24, 80)),
        ("wizard, first paint at 200x50", lambda: first_paint([*program, "--demo"], 50, 200)),
        ("import of DPOTrainer alone", lambda: wall([sys.executable, "-c", "from trl import DPOTrainer"])),
    ]
    seconds = {name: [measure() for _ in range(repeat)] for name, measure in rows}
    plain = min(seconds["import of DPOTrainer alone"])
    print(f"{'':32}{'best':>8}{'median':>8}   share of importing DPOTrainer first")
    for name, taken in seconds.items():
        median = sorted(taken)[len(taken) // 2]
        print(f"{name:32}{min(taken):7.2f}s{median:7.2f}s   {min(taken) / plain:.2f}")


def wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def first_paint(command: list[str], rows: int, columns: int) -> float:
    """Seconds from the start of the process until its first screen has come through a pseudo-terminal."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(command[0], [*command, "--output-dir", f"{folder}/run"])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        seen = b""
        try:
            while FIRST_WORD not in seen:
                if not select.select([terminal], [], [], 20)[0]:
                    raise TimeoutError(f"no first paint; the terminal got {seen[-300:]!r}")
                seen += os.read(terminal, 1 << 16)
            return time.perf_counter() - started
        finally:
            os.kill(pid, signal.SIGTERM)
            drain(terminal)
            os.waitpid(pid, 0)
            os.close(terminal)


def drain(terminal: int) -> None:
    """Read until the other side is closed: a program that cannot write cannot end."""
    while True:
        try:
            if not os.read(terminal, 1 << 16):
                return
        except OSError:
            return


if __name__ == "__main__":
    main()
