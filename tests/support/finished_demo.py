"""`stage3-tui --auto --demo` from the first stage to the last, run once for all tests: its folder and its output."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.shared import made_once
from tests.support.short_run import ENVIRONMENT

RUN, OUTPUT, ERRORS = "stage3", "output", "errors"


def demo_arguments(folder: Path, *options: str) -> list[str]:
    return ["--auto", "--demo", "--json", "--output-dir", str(folder), *options]


@dataclass(frozen=True)
class Demo:
    folder: Path
    output: str
    errors: bytes
    """Output on stderr, which was a terminal: libraries draw progress bars only there."""


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The finished run. Tests must not write to its folder."""
    folder = made_once(tmp_path_factory, "finished-demo", _make)
    return Demo(folder / RUN, (folder / OUTPUT).read_text(), (folder / ERRORS).read_bytes())


def _make(folder: Path) -> None:
    command = [sys.executable, "-m", "tui.cli", *demo_arguments(folder / RUN)]
    terminal, end = pty.openpty()
    with (folder / OUTPUT).open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=end, env=ENVIRONMENT, cwd=folder)
    os.close(end)
    errors = b""
    with contextlib.suppress(OSError):  # on Linux, an error shows that the other end is closed
        while data := os.read(terminal, 1 << 16):
            errors += data
    os.close(terminal)
    (folder / ERRORS).write_bytes(errors)
    assert process.wait(timeout=280) == 0, errors
