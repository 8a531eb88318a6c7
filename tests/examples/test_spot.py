"""examples/spot, with a folder as the bucket and a stand-in for rclone that copies like the original."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from engine.core.errors import ExitCode
from tests.support.example_programs import EXAMPLES, WAITS_FOR_SIGTERM, Programs, configuration_of
from tests.support.short_run import OPTIONS

SCRIPT = EXAMPLES / "spot/run-with-bucket.sh"
RCLONE = f'exec "{sys.executable}" -m tests.support.folder_as_bucket "$@"'


@pytest.fixture
def spot(tmp_path: Path) -> Programs:
    programs = Programs(tmp_path)
    programs.add("rclone", RCLONE)
    programs.add("stage3-tui")
    return programs


def machine(spot: Programs, name: str, **environment: str) -> dict[str, str]:
    return {"BUCKET": str(spot.folder / "bucket"), "WORK": str(spot.folder / name), "SYNC_SECONDS": "1", **environment}


def run_on(spot: Programs, name: str, *arguments: str, **environment: str) -> tuple[int, str]:
    script = spot.start(SCRIPT, *arguments, **machine(spot, name, **environment))
    output, _ = script.communicate(timeout=60)
    return script.returncode, output


def test_files_of_one_machine_reach_the_bucket_and_the_next_machine(spot):
    spot.add("stage3-tui", 'mkdir -p "$3"; cat "$3/made" 2>/dev/null; echo "$WORK" >> "$3/made"')
    assert run_on(spot, "first", "--num-examples", "9")[0] == 0
    code, output = run_on(spot, "second")
    assert code == 0
    assert str(spot.folder / "first") in output
    made = (spot.folder / "bucket/stage3_constitutional/made").read_text().split()
    assert [Path(line).name for line in made] == ["first", "second"]
    assert configuration_of(spot.calls("stage3-tui")[0]).num_examples == 9


def test_an_unreadable_bucket_stops_the_script_before_it_overwrites_anything(spot):
    spot.add("rclone", "exit 1")
    code, output = run_on(spot, "first")
    assert code == ExitCode.NETWORK
    assert "Nothing was started" in output
    assert spot.calls("stage3-tui") == []
    assert [call[0] for call in spot.calls("rclone")] == ["copy"]


def test_sigterm_reaches_the_run_and_the_last_copy_is_made_after_its_save(spot):
    spot.add(
        "stage3-tui", WAITS_FOR_SIGTERM.replace("exit 143", 'mkdir -p "$WORK"; echo saved > "$WORK/last"; exit 143')
    )
    script = spot.start(SCRIPT, **machine(spot, "first", SYNC_SECONDS="600"))
    spot.wait_for("pid")
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)
    assert script.returncode == ExitCode.TERMINATED
    assert (spot.folder / "bucket/last").read_text() == "saved\n"


def test_the_bucket_is_updated_while_the_run_works(spot):
    spot.add("stage3-tui", f'mkdir -p "$3"; echo work > "$3/pairs"\n{WAITS_FOR_SIGTERM}')
    script = spot.start(SCRIPT, **machine(spot, "first"))
    spot.wait_for("bucket/stage3_constitutional/pairs")
    os.kill(int(spot.wait_for("pid")), signal.SIGTERM)
    script.communicate(timeout=60)
    assert script.returncode == ExitCode.TERMINATED


def test_a_replaced_machine_retries_what_the_same_command_can_fix():
    task = yaml.safe_load((EXAMPLES / "spot/skypilot.yaml").read_text(encoding="utf-8"))
    recovers = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert recovers == [ExitCode.TERMINATED, ExitCode.NETWORK]
    last = task["run"].strip().splitlines()[-1].split()
    assert last[:2] == ["exec", "examples/spot/run-with-bucket.sh"]
    configuration_of(last[2:])


@pytest.mark.slow
def test_a_demo_on_a_machine_that_disappears_is_finished_on_another(spot):
    spot.add_real_program()
    options = ["--demo", *OPTIONS]
    first = spot.start("setsid", SCRIPT, *options, **machine(spot, "first"))
    spot.wait_for("bucket/stage3_constitutional/pairs/pairs.jsonl", seconds=300)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)

    second = spot.start(SCRIPT, *options, **machine(spot, "second"))
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    assert (spot.folder / "bucket/stage3_constitutional_artifacts.zip").exists()
    records = (spot.folder / "bucket/stage3_constitutional/pairs/pairs.jsonl").read_text().splitlines()
    assert len(records) == len(set(records)) == 36
