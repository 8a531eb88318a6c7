"""--optim: where each optimizer runs, what its state needs, and that a checkpoint resumes with the optimizer that wrote it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError, Stopped
from engine.core.events import Message, TrainStep
from engine.core.options import options
from engine.dpo.planning.forecast import training_memory
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.training.trainer import training_settings
from engine.machine import optimizers
from engine.machine.optimizers import TORCH_ADAMW, require_optimizer, uses_bitsandbytes
from engine.run.context import Context
from tests.conftest import run_stage
from tests.dpo.test_forecast import GEMMA_2B
from tests.support.tiny_models import build_adapter, build_context, pairs
from tests.support.trainings import train

ROWS = pairs(12)
STEPS = 3
BITS = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra bitsandbytes is not installed")
NAMES = ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Callable[..., Context]:
    """A run whose adapter has tensors of at least 4,096 values, the minimum of bitsandbytes for 8 bits."""
    adapter = build_adapter(tmp_path / "adapter", stage2[0], r=192)
    return lambda run="run", **options: build_context(tmp_path / run, stage2[0], adapter, save_steps=1, **options)


def stopped_after_a_step(context: Context) -> None:
    with pytest.raises(Stopped):
        for event in train(context, ROWS):
            if isinstance(event, TrainStep):
                context.stop.request("the test asks")


def checkpoint(context: Context, step: int) -> Path:
    return context.run / layout.CHECKPOINTS_DIR / f"checkpoint-{step}"


def weights(context: Context) -> bytes:
    return (checkpoint(context, STEPS) / "adapter_model.safetensors").read_bytes()


@BITS
def test_in_8_bits_a_resumed_run_has_the_bytes_of_an_undisturbed_one(make: Callable[..., Context]):
    reference = make("undisturbed", optim="adamw_8bit")
    _, undisturbed = run_stage(train(reference, ROWS))
    stopped_after_a_step(make(optim="adamw_8bit"))
    context = make(optim="adamw_8bit")
    _, resumed = run_stage(train(context, ROWS))
    assert resumed.resumed_from in (1, 2)  # the current step is finished first
    assert resumed.losses == undisturbed.losses
    assert weights(context) == weights(reference)
    state = torch.load(checkpoint(context, STEPS) / "optimizer.pt", weights_only=True)["state"]
    moments = [value for entry in state.values() for value in entry["__bnb_optimizer_quant_state__"].values()]
    assert any(moment.dtype == torch.uint8 for moment in moments)


@BITS
@pytest.mark.parametrize(("first", "then"), [("adamw_8bit", TORCH_ADAMW), (TORCH_ADAMW, "adamw_8bit")])
def test_with_another_optimizer_training_starts_again_with_a_warning(
    first: str, then: str, make: Callable[..., Context]
):
    stopped_after_a_step(make(optim=first))
    events, trained = run_stage(train(make(optim=then), ROWS))
    assert trained.resumed_from is None and trained.steps == STEPS
    assert any("Skipped checkpoint-" in event.text for event in events if isinstance(event, Message))


@BITS
def test_in_8_bits_the_loss_is_nearly_that_of_torchs_adamw(make: Callable[..., Context]):
    losses = [run_stage(train(make(optim, optim=optim), ROWS))[1].losses for optim in (TORCH_ADAMW, "adamw_8bit")]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.05)


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_paged_optimizer_without_a_gpu_is_an_error_before_anything_is_loaded(name: str, make: Callable[..., Context]):
    with pytest.raises(PreconditionError, match=f"--optim {name}: the device is cpu") as failed:
        run_stage(train(make(optim=name), ROWS))
    assert "Use --optim adamw_" in failed.value.what_to_do


@pytest.mark.parametrize("name", NAMES)
def test_without_bitsandbytes_the_error_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizers, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(PreconditionError, match="not installed") as failed:
        require_optimizer(Stage3Config(optim=name))
    assert "stage3-tui[bitsandbytes]" in failed.value.what_to_do


def test_torchs_adamw_needs_no_package_and_resumes_checkpoints_of_earlier_versions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    require_optimizer(Stage3Config())
    assert "optim" not in training_settings(Stage3Config(), 8)
    assert training_settings(Stage3Config(optim="adamw_8bit"), 8)["optim"] == "adamw_8bit"


def test_every_name_is_known_to_transformers():
    from transformers import TrainingArguments
    from transformers.training_args import OptimizerNames

    (choices,) = (option.choices for option in options() if option.name == "optim")
    assert set(choices) == {TORCH_ADAMW, *NAMES} <= {name.value for name in OptimizerNames}
    assert TrainingArguments.__dataclass_fields__["optim"].default == TORCH_ADAMW
    assert not uses_bitsandbytes(Stage3Config())


def test_the_forecast_counts_moments_in_8_bits():
    plan = TrainingPlan(1, 8, True, "live", "bfloat16")

    def adapter(**settings: Any) -> float:
        return training_memory(GEMMA_2B, plan, max_length=1024, context=0, **settings)["adapter"]

    count = GEMMA_2B.adapter_parameters
    assert adapter() == adapter(optim="paged_adamw_32bit") == 20 * count
    assert adapter(optim="adamw_8bit") == adapter(optim="paged_adamw_8bit") == int((12 + 2 + 8 / 256) * count)
