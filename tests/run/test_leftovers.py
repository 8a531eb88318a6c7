"""The temporary files of a killed process are removed at the next start. Those of a live process, and other files, stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.core import layout
from engine.run.folder import Run
from engine.run.leftovers import remove_leftovers


def test_temporary_files_of_dead_processes_are_removed_and_others_stay(tmp_path: Path):
    run = Run(tmp_path / "run")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [
        run / f".run.json.{gone.pid}.part",
        run / f"pairs/.report.json.{gone.pid}.part",
        tmp_path / f".run_artifacts.zip.sha256.{gone.pid}.part",
    ]
    kept = [
        run / f"logs/.stop-request.{os.getpid()}.part",
        run / "pairs/.notes.part",
        run / layout.PAIRS_JSONL,
        tmp_path / f".another_artifacts.zip.sha256.{gone.pid}.part",
        tmp_path / f".run.json.{gone.pid}.part",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    remove_leftovers(run)
    assert not [path for path in left if path.exists()]
    assert [path for path in kept if path.exists()] == kept
