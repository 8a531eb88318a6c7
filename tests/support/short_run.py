"""One short demo for all tests that start from a finished run: made once by the program itself, then copied."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shared import made_once

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PROMPTS = 36
OPTIONS = (
    f"--num-examples {PROMPTS} --split train[:{PROMPTS}] --min-pairs 16 --min-eval-pairs 4 --num-train-epochs 1 --save-steps 1 "
    "--eval-prompts 2 --eval-harmless-prompts 2 --generation-batch-size 8 --pilot-prompts 0 --max-length 128"
).split()


def short_demo_arguments(folder: Path, *more: str) -> list[str]:
    return ["--auto", "--demo", "--json", *OPTIONS, "--output-dir", str(folder), *more]


def short_demo_command(folder: Path, *more: str) -> list[str]:
    """The command up to stage training; `finished_demo` covers the archive."""
    return [sys.executable, "-m", "tui.cli", *short_demo_arguments(folder, "--until", "training", *more)]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run. Copy it (`copy_of`); tests must not write to it."""
    return made_once(tmp_path_factory, "short-run", lambda folder: _make(folder / "run")) / "run"


def _make(folder: Path) -> None:
    made = subprocess.run(
        short_demo_command(folder), capture_output=True, text=True, env=ENVIRONMENT, cwd=folder.parent, timeout=280
    )
    assert made.returncode == 0, made.stderr + made.stdout[-2000:]


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("lock")))
