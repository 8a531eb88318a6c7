"""Memory runs out during training: a smaller micro-batch, a fresh process, the last checkpoint, the same adapter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.core import layout
from engine.core.errors import MemoryExhausted, RestartNeeded
from engine.core.events import Message, RunFinished, TrainStep
from engine.dpo.planning.plan import PLAN_JSON, TrainingPlan, current_plan, plan_as_configured
from engine.dpo.training import trl_trainer
from engine.machine.device_errors import is_broken_device, is_out_of_memory
from engine.machine.memory import MemoryPeak
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import read_entries
from tests.conftest import run_stage
from tests.support.short_run import ENVIRONMENT, copy_of, short_demo_command
from tests.support.tiny_models import build_context, pairs
from tests.support.trainings import train

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 1.95 GiB. GPU 0 has a total capacity of 14.58 GiB"

AUTO = """
import sys
from engine.process.environment import quiet_libraries
quiet_libraries()
from engine.machine.memory import freeze_libraries
freeze_libraries()
import torch
from engine.dpo.training import trl_trainer
real = trl_trainer.Stage3Trainer.compute_loss
def small(self, model, inputs, *args, **kwargs):
    "From the third step on, the device has room for four pairs at a time; preflight did not notice."
    if self.pairs_per_pass > 4 and self.state.global_step >= 2 and "preflight" not in self.args.output_dir:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB.")
    return real(self, model, inputs, *args, **kwargs)
trl_trainer.Stage3Trainer.compute_loss = small
from tui.cli import main
sys.exit(main())
"""


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / layout.ADAPTER_DIR / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def two_runs(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A short demo run, and its training repeated on a device with room for four pairs at a time."""
    limited = copy_of(short_run, tmp_path_factory.mktemp("auto") / "limited")
    (limited / layout.EVENTS_JSONL).unlink()
    program, module = short_demo_command(limited, "--from", "training"), 3
    command = [program[0], "-c", AUTO, *program[module:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return short_run, limited


@pytest.mark.fault("D6")
def test_auto_continues_in_a_fresh_process_with_a_plan_that_fits(two_runs: tuple[Path, Path]):
    entries = list(read_entries(two_runs[1] / layout.EVENTS_JSONL))
    warnings = [
        entry.event.text for entry in entries if isinstance(entry.event, Message) and entry.event.level == "warning"
    ]
    (ran_out,) = [text for text in warnings if "Memory ran out" in text]
    assert ran_out.startswith("Memory ran out after step 2, with 8 × 1 pairs per step")
    assert "Tried to allocate 1.95 GiB" in ran_out and "4 × 2 pairs per step" in ran_out
    starts = [entry for entry in entries if entry.event.kind() == "run_started"]
    assert len(starts) == 2 and len({entry.event.pid for entry in starts}) == 1  # the process was replaced
    assert [entry.event.exit_code for entry in entries if isinstance(entry.event, RunFinished)] == [0]


def test_every_step_is_done_once_on_the_same_pairs(two_runs: tuple[Path, Path]):
    undisturbed, limited = (
        [e.event for e in read_entries(run / layout.EVENTS_JSONL) if isinstance(e.event, TrainStep)] for run in two_runs
    )
    assert [step.step for step in limited] == [step.step for step in undisturbed] == [1, 2, 3, 4]
    assert [step.loss for step in limited] == pytest.approx([step.loss for step in undisturbed], abs=1e-5)
    assert [step.learning_rate for step in limited] == [step.learning_rate for step in undisturbed]


def test_the_adapter_equals_that_of_a_run_with_enough_memory(two_runs: tuple[Path, Path]):
    undisturbed, limited = map(adapter, two_runs)
    assert max((undisturbed[name] - limited[name]).abs().max().item() for name in undisturbed) < 2e-5


def test_the_plan_that_fits_is_recorded_with_its_history(two_runs: tuple[Path, Path]):
    record = Run(two_runs[1]).result("training")
    plan = TrainingPlan.from_dict(record["plan"])
    assert plan is not None and (plan.micro_batch, plan.accumulation) == (4, 2)
    assert [event["to"]["micro_batch"] for event in record["memory_ran_out"]] == [4]
    assert Run(two_runs[0]).result("training")["memory_ran_out"] == []


# -- in one process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    return lambda **options: build_context(tmp_path / "run", *stage2, **{"gradient_checkpointing": None, **options})


@pytest.fixture
def raise_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException, int], None]:
    """Makes every forward pass from a given step on raise an error."""
    real = trl_trainer.Stage3Trainer.compute_loss

    def at(error: BaseException, step: int) -> None:
        def broken(self: Any, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            if self.state.global_step >= step:
                raise error
            return real(self, model, inputs, *args, **more)

        monkeypatch.setattr(trl_trainer.Stage3Trainer, "compute_loss", broken)

    return at


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError(OUT_OF_MEMORY),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:30]}",
)
def test_running_out_of_memory_halves_the_micro_batch_in_a_fresh_process(
    error: Exception, raise_from: Callable[..., None], make: Callable[..., Context]
):
    raise_from(error, 3)
    context = make()
    with pytest.raises(RestartNeeded, match="after step 3, with 2 × 2 pairs") as restart:
        run_stage(train(context, pairs(24)))
    assert "with 1 × 4 pairs per step" in restart.value.what_to_do
    plan = current_plan(context.run, context.config, "float32")
    assert (plan.micro_batch, plan.accumulation, plan.gradient_checkpointing) == (1, 4, True)


def test_a_reduced_plan_outlives_the_process_and_training_continues(
    raise_from: Callable[..., None], make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    undisturbed = run_stage(train(make(), pairs(23)))[1]
    context = make(output_dir=make().run.folder.with_name("again"))
    context = Context(context.config, Run(context.config.output_dir))
    context.run.record_stage("adapter", status="done", result=make().run.result("adapter"))
    with monkeypatch.context():
        raise_from(torch.OutOfMemoryError(OUT_OF_MEMORY), 3)
        with pytest.raises(RestartNeeded):
            run_stage(train(context, pairs(23)))
    monkeypatch.undo()
    _, again = run_stage(train(Context(context.config, Run(context.run.folder)), pairs(23)))
    assert again.resumed_from == 2 and again.plan.micro_batch == 1
    assert again.losses == pytest.approx(
        undisturbed.losses, abs=1e-5
    )  # 23 pairs: the last step has three, in 2 and 1 or in 3


@pytest.mark.fault("D6")
def test_at_micro_batch_1_activations_are_recomputed_and_then_it_ends_with_advice(
    raise_from: Callable[..., None], make: Callable[..., Context]
):
    context = make(per_device_train_batch_size=1)
    plain = TrainingPlan(1, 2, False, "up front", "float32")
    raise_from(torch.OutOfMemoryError(OUT_OF_MEMORY), 0)
    with pytest.raises(RestartNeeded, match="activations recomputed"):
        run_stage(train(context, pairs(8), plan=plain))
    with pytest.raises(MemoryExhausted, match="no smaller plan is left") as end:
        run_stage(train(context, pairs(8)))
    assert not isinstance(end.value, RestartNeeded) and end.value.exit_code == 7
    assert "--max-length 64 (now 128)" in end.value.what_to_do and "--load-in-4bit" in end.value.what_to_do
    assert "Tried to allocate 1.95 GiB" in end.value.why


def test_without_gradient_checkpointing_the_advice_is_to_use_it(
    raise_from: Callable[..., None], make: Callable[..., Context]
):
    raise_from(torch.OutOfMemoryError(OUT_OF_MEMORY), 0)
    with pytest.raises(MemoryExhausted, match="Use --gradient-checkpointing"):
        run_stage(train(make(per_device_train_batch_size=1, gradient_checkpointing=False), pairs(8)))


def test_errors_other_than_out_of_memory_pass_through(raise_from: Callable[..., None], make: Callable[..., Context]):
    raise_from(RuntimeError("CUDA error: device-side assert triggered"), 1)
    context = make()
    with pytest.raises(RuntimeError, match="device-side assert"):
        run_stage(train(context, pairs(8)))
    assert not (context.run / PLAN_JSON).exists()


BROKEN = (
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "CUDA error: uncorrectable ECC error encountered; the device is out of memory pages",
)


@pytest.mark.fault("D9")
@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_device_is_never_tried_again_in_the_same_process(text: str):
    assert is_broken_device(RuntimeError(text)) and not is_out_of_memory(RuntimeError(text))


def test_a_damaged_or_foreign_plan_is_ignored(make: Callable[..., Context]):
    context = make()
    own = plan_as_configured(context.config, "float32")
    for text in (
        "{",
        "[]",
        '{"plan": {"micro_batch": 0}}',
        json.dumps({"plan": {**own.as_dict(), "accumulation": 64}}),
    ):
        (context.run / PLAN_JSON).parent.mkdir(exist_ok=True)
        (context.run / PLAN_JSON).write_text(text)
        assert current_plan(context.run, context.config, "float32") == own


def test_peak_memory_counts_from_the_start_of_the_measurement():
    before = MemoryPeak(torch.device("cpu"))
    much = torch.ones(64, 1 << 20)  # 256 MiB
    high = before.bytes()
    del much
    after = MemoryPeak(torch.device("cpu")).bytes()
    assert high - after > 200 << 20
