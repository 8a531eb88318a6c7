"""examples/slurm/several-nodes.sbatch, with stand-ins: srun starts a task per node, and scontrol lists the nodes."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine.core.errors import ExitCode
from tests.support.example_programs import EXAMPLES, Programs, configuration_of

SCRIPT = EXAMPLES / "slurm" / "several-nodes.sbatch"
SRUN = """while [ "${1#--}" != "$1" ]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=("$!"); done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ "$code" -gt "$worst" ] && worst=$code; done
exit "$worst"
"""
"""srun, as far as the script uses it: runs the command on two nodes, and exits with the highest code."""
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_CPUS_PER_TASK": "32",
}
OPTIONS = ("--gradient-accumulation-steps", "32")


@pytest.fixture
def slurm(tmp_path: Path) -> Programs:
    programs = Programs(tmp_path)
    programs.add("srun", SRUN)
    programs.add("scontrol", '[ "$1" = show ] && printf "gpu07\\ngpu08\\n"; exit 0')
    programs.add("stage3-tui")
    return programs


def start(slurm: Programs) -> subprocess.Popen[str]:
    return slurm.start("bash", SCRIPT, *OPTIONS, SLURM_SUBMIT_DIR=str(slurm.folder), **JOB)


def requeued(slurm: Programs) -> bool:
    return ["requeue", "4711"] in slurm.calls("scontrol")


def test_each_node_gets_its_rank_and_all_nodes_get_the_same_main_process(slurm):
    assert start(slurm).wait(60) == 0
    configs = [configuration_of(command) for command in slurm.calls("stage3-tui")]
    assert sorted(config.machine_rank for config in configs) == [0, 1]
    for config in configs:
        assert (config.num_machines, config.main_process_ip, config.main_process_port) == (2, "gpu07", 24711)
        assert config.output_dir == slurm.folder / "artifacts/stage3_constitutional"
        assert config.gradient_accumulation_steps == 32
    (srun,) = slurm.calls("srun")
    assert {"--ntasks-per-node=1", "--cpus-per-task=32", "--kill-on-bad-exit=1", "--wait=0"} <= set(srun)
    assert not requeued(slurm)


def test_after_sigterm_to_every_process_only_machine_0_determines_the_exit_code(slurm):
    slurm.add("stage3-tui", "trap 'kill $!; exit 143' TERM; echo >> '{folder}/waits' here; sleep 60 & wait $!")
    job = start(slurm)
    while slurm.wait_for("waits").count("here") < 2:
        pass
    (srun,) = psutil.Process(job.pid).children()
    for process in srun.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # its parent, signalled before, has ended it
            process.send_signal(signal.SIGTERM)
    assert job.wait(60) == ExitCode.TERMINATED
    assert requeued(slurm)


def test_a_machine_that_stops_on_request_does_not_end_the_step(slurm):
    """Otherwise, --kill-on-bad-exit would end machine 0 while it saves."""
    slurm.add("stage3-tui", '[ "$2" = 0 ] && exit 0; exit 143')
    assert start(slurm).wait(60) == 0


@pytest.mark.parametrize("machine", ["0", "1"])
def test_a_machine_that_fails_ends_the_job_with_its_exit_code(slurm, machine):
    slurm.add("stage3-tui", f'[ "$2" = {machine} ] && exit 7; exit 0')
    assert start(slurm).wait(60) == ExitCode.MEMORY
    assert not requeued(slurm)
