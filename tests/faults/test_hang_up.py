"""A connection that drops in the middle of a run without a screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core import layout
from engine.run.folder import Run
from tests.support.pseudo_terminal import PseudoTerminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[PseudoTerminal]:
    command = ["--auto", "--demo", "--until", "credentials", "--output-dir", str(tmp_path / "run")]
    started = PseudoTerminal([sys.executable, "-m", "tui.cli", *command])
    yield started
    started.kill()


@pytest.mark.fault("A5")
def test_auto_runs_to_its_end_after_its_terminal_hangs_up(terminal: PseudoTerminal, tmp_path: Path):
    journal = tmp_path / "run" / layout.EVENTS_JSONL
    terminal.until(lambda: journal.exists() and b"run_started" in journal.read_bytes(), "the first event")
    assert b"run_finished" not in journal.read_bytes()
    terminal.hang_up()
    _, status = os.waitpid(terminal.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    stages = Run(tmp_path / "run").manifest["stages"]
    assert {stages[name]["status"] for name in ("workspace", "toolchain")} == {"done"}
    assert b"run_finished" in journal.read_bytes()
