"""Two "machines" on one host, connected over localhost: machine 0 runs everything, machine 1 joins the training."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, ExitCode, Stopped
from engine.core.events import RunFinished, TrainStep
from engine.dpo.planning.process_count import number_of_processes
from engine.dpo.training.join import join_training
from engine.dpo.training.launcher import REQUEST_JSON, launch_command
from engine.dpo.training.worker_messages import Request
from engine.run.context import Context
from engine.run.journal import Journal
from tests.conftest import run_stage
from tests.support.tiny_models import build_context, pairs, write_rows
from tests.support.trainings import train, train_as_planned

ROOT = Path(__file__).parents[2]
ROWS = pairs(14)


@pytest.fixture
def machine(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    """One of two machines, by its rank; both use the same run folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def build(rank: int, **options: object) -> Context:
        two = {"num_machines": 2, "machine_rank": rank, "main_process_ip": "127.0.0.1", "main_process_port": port}
        return build_context(tmp_path / "run", *stage2, **(two | options))

    return build


@pytest.mark.slow
def test_two_machines_train_what_one_does(machine: Callable[..., Context], stage2: tuple[Path, Path], tmp_path: Path):
    _, alone = run_stage(train(build_context(tmp_path / "alone", *stage2), ROWS))
    first = machine(0)
    write_rows(first.run / "dpo_dataset/train.jsonl", ROWS)
    options = [
        f"--{name.replace('_', '-')}={getattr(first.config, name)}"
        for name in ("output_dir", "base_model_id", "num_machines", "main_process_ip", "main_process_port")
    ]
    command = [sys.executable, "-m", "tui.cli", "--auto", "--machine-rank=1", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as second:
        events, trained = run_stage(train_as_planned(first, ROWS))
        output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert [line.partition(" ")[0] for line in output.splitlines()] == ["Machine", "Machine", "The"]
    assert trained.losses == pytest.approx(alone.losses, abs=1e-5)
    assert [event.step for event in events if isinstance(event, TrainStep)] == [1, 2, 3, 4]
    logs = {path.name for path in (first.run / "logs/processes").iterdir()}
    assert logs == {"rank-0.log", "rank-1.log", "launcher.log", "launcher-1.log"}


def test_the_options_are_passed_to_accelerate(machine: Callable[..., Context]):
    second = machine(1)
    command = launch_command(second.config, second.run, 4)
    passed = dict(itertools.pairwise(command))
    expected = {"--num_processes": "4", "--num_machines": "2", "--machine_rank": "1", "--main_process_ip": "127.0.0.1"}
    assert {name: passed[name] for name in expected} == expected
    assert passed["--main_process_port"] == str(second.config.main_process_port)


def test_a_machine_that_waits_ends_with_the_run(machine: Callable[..., Context]):
    context = machine(1)
    journal = Journal(context.run / "logs/events.jsonl")
    journal.append(RunFinished(0))  # of an earlier start
    joining = join_training(context.config, context.run, context.stop)
    assert "is waiting" in next(joining).text
    with (context.run / "logs/events.jsonl").open("a") as file:
        file.write('{"kind": "run_finished", "exit_code"\n')  # a line that a copy cut short is skipped
    journal.append(RunFinished(9))
    journal.close()
    events, code = run_stage(joining)
    assert code is ExitCode.DATA and "ended" in events[-1].text


def test_a_stale_request_is_ignored(machine: Callable[..., Context]):
    context = machine(1)
    (context.run / REQUEST_JSON).parent.mkdir(parents=True)
    Request({}, "", "", "", {"processes": 2}).write(context.run / REQUEST_JSON)
    joining = join_training(context.config, context.run, context.stop)
    next(joining)
    context.stop.request("the test asks")
    with pytest.raises(Stopped):
        next(joining)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"num_machines": 2}, "need the address of machine 0"),
        ({"num_machines": 2, "machine_rank": 2, "main_process_ip": "10.0.0.1"}, "The last of 2 machines .* number 1"),
        ({"num_machines": 3, "num_processes": 4, "main_process_ip": "10.0.0.1"}, "4 processes .* among 3 machines"),
    ],
)
def test_machines_that_cannot_connect_are_refused(
    options: dict[str, object], why: str, config: Callable[..., Stage3Config]
):
    with pytest.raises(ConfigError, match=why):
        config(**options)


def test_each_machine_has_one_process_by_default(machine: Callable[..., Context]):
    assert number_of_processes(machine(0).config) == 2
    assert number_of_processes(machine(0, num_processes=4).config) == 4
    with pytest.raises(ConfigError, match=r"--num-machines 3: 4 pairs .* --num-machines 2"):
        number_of_processes(machine(0, num_machines=3).config)
