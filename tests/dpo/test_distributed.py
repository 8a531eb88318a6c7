"""Two processes on one CPU, over gloo: they train what one process trains, and failures are traced to their cause."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
import torch

from engine.core import layout
from engine.core.errors import NumbersError, RestartNeeded, Stage3Error, Stopped
from engine.core.events import CheckpointSaved, Event, Message, Stalled, TrainStep
from engine.dpo.planning.plan import TrainingPlan, current_plan
from engine.dpo.training.checkpoints import by_step, step_of
from engine.dpo.training.failure_diagnosis import FailureDiagnosis
from engine.dpo.training.trainer import Trained
from engine.dpo.training.worker_messages import Failure, rank_log
from engine.models.tensors import adapter_tensors
from engine.process.suspended import SUSPENDED_SECONDS
from engine.run.context import Context
from tests.conftest import run_stage
from tests.support.tiny_models import build_context, pairs, write_rows
from tests.support.trainings import train, train_as_planned

ROWS = pairs(22)
STEPS = 6
"""22 pairs in steps of 4; the last one has 2."""


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    def build(name: str = "run", processes: int = 2, **options: Any) -> Context:
        context = build_context(tmp_path / name, *stage2, num_processes=processes, **options)
        write_rows(context.run / layout.TRAIN_JSONL, ROWS)
        return context

    return build


def training(context: Context) -> Generator[Event, None, Trained]:
    return train_as_planned(context, ROWS)


def steps_of(events: list[Any]) -> list[TrainStep]:
    return [event for event in events if isinstance(event, TrainStep)]


def ranks_of(context: Context) -> dict[int, int]:
    """The process id of each rank, found by its open log."""
    pids = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            log = (process / "fd/1").readlink()
        except OSError:
            continue
        if log.parent == context.run / layout.PROCESSES_DIR and log.stem.startswith("rank-"):
            pids[int(log.stem.removeprefix("rank-"))] = int(process.name)
    return pids


def send_to_all(context: Context, number: signal.Signals) -> None:
    """Send a signal to the ranks and their launcher."""
    ranks = ranks_of(context)
    assert len(ranks) == 2
    for pid in (psutil.Process(ranks[0]).ppid(), *ranks.values()):
        os.kill(pid, number)


def share_held(events: list[Any]) -> int:
    """The reported percentage of all weights that a process holds before the first pass."""
    (text,) = [event.text for event in events if isinstance(event, Message) and "is sharded over" in event.text]
    return int(re.search(r"\((\d+)%\)", text)[1])


@pytest.mark.fault("A4")
def test_two_processes_train_what_one_does_and_a_signal_to_all_of_them_loses_no_step(make: Callable[..., Context]):
    """As Slurm sends it to a job: the run receives it, too, and decides for the others when to stop."""
    (one, alone), context, events = run_stage(train(make("alone", 1), ROWS)), make(), []
    with pytest.raises(Stopped):
        for event in training(context):
            events.append(event)
            if isinstance(event, TrainStep) and event.step == 2:
                send_to_all(context, signal.SIGHUP)  # the run continues without a terminal
            if isinstance(event, TrainStep) and event.step == 3:
                send_to_all(context, signal.SIGTERM)
                context.stop.request("SIGTERM")
    assert not ranks_of(context)
    steps = steps_of(events)
    assert len(steps) >= 3
    for name in ("step", "loss", "grad_norm", "margin", "reward_chosen", "accuracy", "epoch", "learning_rate"):
        expected = [getattr(step, name) for step in steps_of(one)[: len(steps)]]
        assert [getattr(step, name) for step in steps] == pytest.approx(expected, abs=1e-5)
    assert next(event.step for event in events if isinstance(event, CheckpointSaved)) == 2
    saved = step_of(by_step(context.run / layout.CHECKPOINTS_DIR)[-1])
    assert saved >= 3
    _, trained = run_stage(train(make(processes=1), ROWS))
    assert trained.resumed_from == saved
    assert trained.losses == pytest.approx(alone.losses, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 2)])
def test_a_training_continues_with_another_number_of_processes(before: int, after: int, make: Callable[..., Context]):
    _, undisturbed = run_stage(train(make("alone", 1), ROWS))
    context = make("run", before)
    with pytest.raises(Stopped):
        for event in training(context):
            if isinstance(event, TrainStep) and event.step == 3:
                context.stop.request("the test asks")
    events, trained = run_stage(training(make("run", after)))
    assert 3 <= trained.resumed_from < STEPS
    assert [step.step for step in steps_of(events)] == list(range(trained.resumed_from + 1, STEPS + 1))
    assert trained.losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_and_the_training_continues(make: Callable[..., Context]):
    _, undisturbed = run_stage(train(make("alone", 1), ROWS))
    context = make()
    with pytest.raises(Stage3Error, match="rank 1 of the 2 training processes ended by SIGKILL") as failed:
        for event in training(context):
            if isinstance(event, CheckpointSaved):
                os.kill(ranks_of(context)[1], signal.SIGKILL)
    assert "logs/processes/rank-1.log: " in failed.value.why and "step 2 of 6" in failed.value.why
    assert "checkpoint of step 2" in failed.value.what_to_do
    assert not ranks_of(context)
    _, trained = run_stage(training(make()))
    assert trained.resumed_from is not None and trained.resumed_from >= 2
    assert trained.losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more_seconds", [0, 55])
def test_a_process_that_is_stopped_for_a_while_is_reported_and_resumes(
    more_seconds: float, make: Callable[..., Context]
):
    """It resumes as soon as it is reported, after five seconds, or a minute later."""
    context = make()
    stopped, events, began = 0, [], 0.0
    for event in training(context):
        events.append(event)
        if isinstance(event, TrainStep) and event.step == 2:
            stopped, began = ranks_of(context)[1], time.monotonic()
            os.kill(stopped, signal.SIGSTOP)
        if isinstance(event, Message) and "is stopped" in event.text:
            assert f"kill -CONT {stopped}" in event.text and "Rank 1 " in event.text
            Timer(more_seconds, os.kill, (stopped, signal.SIGCONT)).start()
    assert time.monotonic() - began > more_seconds + SUSPENDED_SECONDS
    assert [event.seconds > 0 for event in events if isinstance(event, Stalled)] == [True, False]
    _, alone = run_stage(train(make("alone", 1), ROWS))
    assert [step.loss for step in steps_of(events)] == pytest.approx(alone.losses, abs=1e-5)


@pytest.mark.slow
def test_the_finite_check_works_in_workers(make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAILPOINTS_STAGE3", "loss=nan@4")
    context = make()
    with pytest.raises(NumbersError, match="The loss is nan at step 4"):
        run_stage(training(context))
    assert not ranks_of(context)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [("", "fsdp"), ("fsdp", ""), ("ddp", "fsdp")])
def test_a_sharded_training_has_the_same_losses_and_saves_a_full_adapter(
    before: str, after: str, make: Callable[..., Context]
):
    """Started with `before` and continued with `after`. An empty `before` means one training; an empty `after`, one process."""
    (_, alone), sharding = run_stage(train(make("alone", 1), ROWS)), {"": {"processes": 1}}
    if before:
        context = make(**sharding.get(before, {"sharding": before}))
        with pytest.raises(Stopped):
            for event in training(context):
                if isinstance(event, TrainStep) and event.step == 3:
                    context.stop.request("the test asks")
    events, trained = run_stage(training(make(**sharding.get(after, {"sharding": after}))))
    if after == "fsdp":
        assert 50 <= share_held(events) < 60
        # If the check fails on a sharded model, training falls back to a slower head.
        assert not [event.text for event in events if isinstance(event, Message) and "computed whole" in event.text]
    assert (trained.resumed_from or 0) >= (3 if before else 0)
    assert trained.losses == pytest.approx(alone.losses, abs=1e-4)
    tensors, expected = (adapter_tensors(one.model, "default") for one in (trained, alone))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: t.shape for n, t in expected.items()}
    assert all(torch.allclose(tensors[name], expected[name], atol=1e-4) for name in expected)


# -- which process failed first ----------------------------------------------------------------------------------------


def report(**codes: int) -> str:
    """The launcher's report on the processes r0, r1, …"""
    return "".join(
        f"[{rank[1:]}]:\n  time      : 2026\n  rank      : {rank[1:]} (local_rank: {rank[1:]})\n"
        f"  exitcode  : {code} (pid: 7)\n"
        for rank, code in codes.items()
    )


CLOSED = "RuntimeError: [gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:9"
LATE = "RuntimeError: [gloo/buffer.cc:119] Timed out waiting 1800000ms for recv operation to complete"
WATCHDOG = "[rank0]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"


@pytest.mark.parametrize(
    "failures, codes, logs, expected",
    [
        ([Failure(0, "lost", CLOSED)], {"r0": -15, "r1": -9, "r2": -15}, {}, "rank 1 .* ended by SIGKILL"),
        ([Failure(0, "lost", CLOSED)], {"r0": -15, "r1": 3, "r2": -15}, {}, "rank 1 .* ended with exit code 3"),
        ([Failure(0, "lost", CLOSED)], {"r0": 1, "r1": -15}, {}, "rank 1 .* ended by SIGTERM"),
        ([Failure(0, "lost", LATE)], {"r0": 1, "r1": -9}, {}, "rank 1 .* did not respond"),
        ([], {"r0": -6, "r1": -9, "r2": -6}, {0: WATCHDOG, 2: WATCHDOG}, "rank 1 .* did not respond"),
        ([Failure(1, "bug", "KeyError: 'x'")], {"r0": -15, "r1": 1}, {}, "rank 1 .* failed: KeyError: 'x'"),
        ([Failure(0, "bug", "OddError: gone")], {"r0": 1, "r1": -11}, {}, "rank 1 .* ended by SIGSEGV"),
        ([Failure(1, "error", "Bad.", "So.", "Do.", 8)], {"r0": -15, "r1": 1}, {}, "Bad. So. Do."),
        ([], {}, {}, "the 3 training processes ended before training was complete"),
    ],
)
def test_the_process_that_failed_first_is_named(
    failures: list[Failure],
    codes: dict[str, int],
    logs: dict[int, str],
    expected: str,
    make: Callable[..., Context],
):
    context, plan = make(), TrainingPlan(1, 2, False, "live", "float32", processes=3)
    for rank, text in logs.items():
        rank_log(context.run, rank).parent.mkdir(exist_ok=True, parents=True)
        rank_log(context.run, rank).write_text(f"step 4\n{text}\n")
    error = FailureDiagnosis(context.run, context.config, plan, failures, report(**codes), step=5).error()
    assert re.search(expected, str(error))
    assert isinstance(error, NumbersError) == (error.exit_code == 8)


def test_a_process_that_runs_out_of_memory_leads_to_a_smaller_plan(make: Callable[..., Context]):
    context, plan = make(), TrainingPlan(2, 1, True, "live", "float32", processes=2)
    failures = [Failure(0, "lost", CLOSED), Failure(1, "memory", "CUDA out of memory. Tried to allocate 2 GiB")]
    error = FailureDiagnosis(context.run, context.config, plan, failures, "", step=3).error()
    assert isinstance(error, RestartNeeded) and "2 processes × 1 × 2" in str(error)
    assert current_plan(context.run, context.config, "float32") == plan.reduce()
