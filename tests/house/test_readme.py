from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.core import layout
from engine.core.errors import ExitCode
from engine.core.layout import ADAPTER_DIR, CHECKPOINTS_DIR
from tests.conftest import needs_shared_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_stages_and_keys_are_the_programs_own():
    """`python docs/tables.py` writes them."""
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


def test_every_file_of_a_run_and_every_exit_code_is_told():
    files = [getattr(layout, name) for name in vars(layout) if name.endswith(("_JSON", "_JSONL", "_REPORT", "_LOG"))]
    for file in [*files, ADAPTER_DIR, CHECKPOINTS_DIR]:
        assert file in README
    for code in ExitCode:
        assert str(int(code)) in README


def test_every_picture_is_there_and_names_no_machine():
    pictures = [line.split("](")[1].rstrip(")") for line in README.splitlines() if line.startswith("![")]
    assert pictures
    for picture in pictures:
        svg = (ROOT / picture).read_text(encoding="utf-8")
        assert "/tmp" not in svg and "/root" not in svg and "/home" not in svg


def test_what_it_says_of_the_notebooks_pairs_is_what_validate_prints():
    pairs = needs_shared_data("gemma-2b-it-pairs.jsonl")
    command = [sys.executable, "-m", "tui.cli", "validate", str(pairs)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == ExitCode.DATA, done.stderr
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    shown = README.split("`stage3-tui validate` on that file:\n\n```\n")[1].split("```")[0].splitlines()
    assert len(shown) > 5
    assert [line for line in shown if line != "…" and line not in printed] == []
