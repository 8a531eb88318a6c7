from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import DamagedState, RunLocked
from engine.names import LOCK_FILE, RUN_JSON
from engine.run import Run

HOLD = """
import sys
from pathlib import Path
from engine.run import Run
run = Run(Path(sys.argv[1]))
run.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_has_the_run(tmp_path: Path):
    process = holder(tmp_path)
    try:
        with pytest.raises(RunLocked, match=f"process {process.pid}"):
            Run(tmp_path).acquire()
        assert Run(tmp_path).owner()["pid"] == process.pid
    finally:
        process.kill()
        process.wait()


def test_a_killed_owner_leaves_the_run_free(tmp_path: Path):
    process = holder(tmp_path)
    process.kill()
    process.wait()
    run = Run(tmp_path)
    assert run.owner() is None
    run.acquire()
    run.release()


def test_a_pid_that_was_used_again_is_no_owner(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    record = {"pid": os.getppid(), "host": os.uname().nodename, "since": "long ago", "process_started": 12.5}
    (tmp_path / LOCK_FILE).write_text(json.dumps(record))
    Run(tmp_path).acquire()


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', '{"schema": 99, "stages": {}}', "[]", '{"stages": 3}'])
def test_a_damaged_manifest_is_a_decision_for_a_person_and_left_as_it_is(damage: str, tmp_path: Path):
    (tmp_path / RUN_JSON).write_text(damage)
    with pytest.raises(DamagedState):
        Run(tmp_path)
    assert (tmp_path / RUN_JSON).read_text() == damage


def test_what_is_set_aside_is_moved_not_deleted(tmp_path: Path):
    run = Run(tmp_path)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.jsonl").write_text("first")
    first = run.set_aside("pairs", "models")
    (tmp_path / "pairs").mkdir()
    second = run.set_aside("pairs")
    assert first is not None and (first / "pairs" / "pairs.jsonl").read_text() == "first"
    assert second not in (None, first)
    assert run.set_aside("pairs") is None


def test_a_run_folder_is_ours_alone_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        run = Run(tmp_path / "artifacts/run")
        run.acquire()
        run.release()
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
