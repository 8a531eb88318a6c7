"""`stage3-tui --auto --demo` from its first stage to its last, once for all tests: its folder, and what it said."""

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
    """What came on stderr, which was a terminal: libraries draw their bars nowhere else."""


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Nobody writes into its folder."""
    place = made_once(tmp_path_factory, "finished-demo", _make)
    return Demo(place / RUN, (place / OUTPUT).read_text(), (place / ERRORS).read_bytes())


def _make(place: Path) -> None:
    command = [sys.executable, "-m", "tui.cli", *demo_arguments(place / RUN)]
    terminal, end = pty.openpty()
    with (place / OUTPUT).open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=end, env=ENVIRONMENT, cwd=place)
    os.close(end)
    errors = b""
    with contextlib.suppress(OSError):  # how Linux tells that nobody has the other end any more
        while data := os.read(terminal, 1 << 16):
            errors += data
    os.close(terminal)
    (place / ERRORS).write_bytes(errors)
    assert process.wait(timeout=280) == 0, errors
