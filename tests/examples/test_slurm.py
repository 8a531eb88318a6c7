"""examples/slurm, run with stand-ins for srun and scontrol, and real signals."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine.core.errors import ExitCode
from engine.run.folder import Run
from tests.support.example_programs import EXAMPLES, WAITS_FOR_SIGTERM, Programs, configuration_of
from tests.support.short_run import OPTIONS

SCRIPT = EXAMPLES / "slurm" / "one-node.sbatch"
SRUN = """while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
"""srun, as far as the scripts use it: runs the command after its own options, and exits with its code."""
JOB = {"SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8"}


@pytest.fixture
def slurm(tmp_path: Path) -> Programs:
    programs = Programs(tmp_path)
    programs.add("srun", SRUN)
    programs.add("scontrol")
    programs.add("stage3-tui")
    return programs


def run_job(slurm: Programs, *arguments: str, **environment: str) -> int:
    job = slurm.start("bash", SCRIPT, *arguments, SLURM_SUBMIT_DIR=str(slurm.folder), **JOB, **environment)
    job.communicate(timeout=60)
    return job.returncode


def test_a_finished_run_ends_the_job_without_requeueing_it(slurm):
    assert run_job(slurm, "--num-examples", "2500") == 0
    assert slurm.calls("scontrol") == []
    (command,) = slurm.calls("stage3-tui")
    config = configuration_of(command)
    assert config.num_examples == 2500
    assert config.output_dir == slurm.folder / "artifacts/stage3_constitutional"


def test_sigterm_to_the_step_saves_the_run_and_requeues_the_job(slurm):
    slurm.add("stage3-tui", WAITS_FOR_SIGTERM)
    job = slurm.start("bash", SCRIPT, SLURM_SUBMIT_DIR=str(slurm.folder), **JOB)
    os.kill(int(slurm.wait_for("pid")), signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == ExitCode.TERMINATED
    assert slurm.calls("scontrol") == [["requeue", "4711"]]
    assert "Requeueing job" in output


@pytest.mark.parametrize("code", [int(ExitCode.DATA), int(ExitCode.MEMORY), int(ExitCode.INTERRUPTED)])
def test_any_other_exit_code_ends_the_job_until_a_person_restarts_it(slurm, code):
    slurm.add("stage3-tui", f"exit {code}")
    assert run_job(slurm) == code
    assert slurm.calls("scontrol") == []


def test_a_job_that_was_requeued_too_often_stops(slurm):
    slurm.add("stage3-tui", "exit 143")
    assert run_job(slurm, SLURM_RESTART_COUNT="20") == ExitCode.TERMINATED
    assert slurm.calls("scontrol") == []


def test_the_token_is_passed_in_a_file_and_never_on_the_command_line(slurm):
    token = slurm.folder / ".config/stage3/token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_" + "a" * 34)
    run_job(slurm)
    (command,) = slurm.calls("stage3-tui")
    assert command[command.index("--token-file") + 1] == str(token)
    assert "hf_" not in slurm.calls_file.read_text()


def test_the_signal_comes_minutes_before_the_time_limit():
    assert "#SBATCH --signal=TERM@600\n" in SCRIPT.read_text()  # with `B:`, only the shell would get it


@pytest.mark.slow
def test_a_demo_stopped_by_the_time_limit_is_finished_by_the_next_start_of_the_same_job(slurm):
    slurm.add_real_program()
    run = slurm.folder / "artifacts/stage3_constitutional"
    command = ["bash", SCRIPT, "--demo", *OPTIONS]
    job = slurm.start(*command, SLURM_SUBMIT_DIR=str(slurm.folder), **JOB)
    slurm.wait_for("artifacts/stage3_constitutional/pairs/pairs.jsonl", seconds=300)
    signal_step(pid_at_work(run))
    job.communicate(timeout=300)
    assert job.returncode == ExitCode.TERMINATED
    assert slurm.calls("scontrol") == [["requeue", "4711"]]
    records = (run / "pairs/pairs.jsonl").read_bytes()

    again = slurm.start(*command, SLURM_SUBMIT_DIR=str(slurm.folder), SLURM_RESTART_COUNT="1", **JOB)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert (run / "pairs/pairs.jsonl").read_bytes().startswith(records)
    assert (run.parent / "stage3_constitutional_artifacts.zip").exists()


def signal_step(pid: int) -> None:
    """SIGTERM as Slurm sends it: to every process of the step, the program's children too."""
    program = psutil.Process(pid)
    for process in [*program.children(recursive=True), program]:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            process.send_signal(signal.SIGTERM)


def pid_at_work(run: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (owner := Run(run).owner()) is not None:
            return owner.pid
        time.sleep(0.1)
    raise AssertionError("no process holds the run")
