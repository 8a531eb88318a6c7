from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine import names
from engine.errors import ExitCode
from engine.names import ADAPTER_DIR, CHECKPOINTS_DIR

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_stages_and_keys_are_the_programs_own():
    """`python docs/tables.py` writes them."""
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


def test_every_file_of_a_run_and_every_exit_code_is_told():
    files = [getattr(names, name) for name in vars(names) if name.endswith(("_JSON", "_JSONL", "_REPORT", "_LOG"))]
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
