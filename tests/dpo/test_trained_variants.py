"""DPO of adapters other than plain LoRA: those that stage adapter accepts are trained against the right reference; those
that it rejects would not be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.core.errors import NumbersError, PreconditionError, Stopped
from engine.core.events import TrainStep
from engine.dpo.training.reference import REFERENCE_ADAPTER
from engine.dpo.training.trainer import save_adapter
from engine.models.adapters.effect import effect_on_logits, logits_of
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.models.number_format import overflow_in_float16
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.run.context import Context
from engine.stages import adapter as stage
from tests.conftest import run_stage
from tests.support.damaged_adapters import WEIGHTS
from tests.support.tiny_models import build_adapter, build_context, pairs
from tests.support.trainings import train

ROWS = pairs(8)
STEPS = 3

VARIANTS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "full head": {"modules_to_save": ["lm_head"]},
    "full embedding": {"modules_to_save": ["embed_tokens"]},
    "full norms": {"modules_to_save": ["norm"]},
    "patterns over all": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 5},
        "alpha_pattern": {"v_proj": 11},
    },
    "a parameter": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
}

Make = Callable[..., Context]


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Make:
    """A run with an adapter of these settings."""

    def context(settings: dict[str, Any], run: str = "run", **options: object) -> Context:
        adapter = tmp_path / "adapter"
        if not adapter.exists():
            build_adapter(adapter, stage2[0], **settings)
        return build_context(tmp_path / run, stage2[0], adapter, save_steps=1, **options)

    return context


def record(context: Context) -> str:
    """Run stage adapter and return the hash that it records."""
    _, result = run_stage(stage.run(context))
    context.run.record_stage("adapter", status="done", result=dict(result.facts))
    return str(result.facts["tensors_sha256"])


def base_logits(context: Context) -> torch.Tensor:
    return logits_of(load_base(context.config), load_tokenizer(context.config))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_is_the_stage_2_adapter_and_the_trained_adapter_is_saved(name: str, make: Make, tmp_path: Path):
    context = make(VARIANTS[name])
    recorded = record(context)
    events, trained = run_stage(train(context, ROWS, max_steps=STEPS))
    assert abs(trained.first_loss - math.log(2)) < 1e-6
    assert len({event.loss for event in events if isinstance(event, TrainStep)}) == STEPS
    assert hash_tensors(adapter_tensors(trained.model, REFERENCE_ADAPTER)) == recorded
    before, after = load_file(tmp_path / "adapter" / WEIGHTS), adapter_tensors(trained.model, "default")
    assert before.keys() == after.keys()
    assert not [tensor for tensor in before if torch.equal(before[tensor], after[tensor])]
    assert effect_on_logits(trained.model, trained.tokenizer, base_logits(context)) > 0  # the base model is unchanged

    save_adapter(trained, tmp_path / "stage3", base_name="base", base_revision=None)
    policy = load_policy(load_base(context.config), tmp_path / "stage3")
    assert hash_tensors(adapter_tensors(policy, "default")) == trained.tensors_sha256
    logits = logits_of(policy, trained.tokenizer)
    merged = policy.merge_and_unload()  # as pairs are made if the arithmetic is float32
    torch.testing.assert_close(logits_of(merged, trained.tokenizer), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DoRA", "full head"])
def test_the_reference_up_front_equals_the_live_one(name: str, make: Make):
    live, up_front = make(VARIANTS[name]), make(VARIANTS[name], "up-front", cpu_ref_model=True)
    _, with_live = run_stage(train(live, ROWS, max_steps=STEPS))
    _, with_up_front = run_stage(train(up_front, ROWS, max_steps=STEPS))
    theirs, ours = (adapter_tensors(trained.model, "default") for trained in (with_live, with_up_front))
    for tensor in theirs:
        torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DoRA", "full head"])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(name: str, make: Make, tmp_path: Path):
    undisturbed, stopped = make(VARIANTS[name]), make(VARIANTS[name], "stopped")
    run_stage(train(undisturbed, ROWS, max_steps=STEPS))
    with pytest.raises(Stopped):
        for event in train(stopped, ROWS, max_steps=STEPS):
            if isinstance(event, TrainStep):
                stopped.stop.request("the test asks")
    again = make(VARIANTS[name], "stopped")
    _, trained = run_stage(train(again, ROWS, max_steps=STEPS))
    assert trained.resumed_from is not None
    last = f"checkpoints/checkpoint-{STEPS}/{WEIGHTS}"
    assert (stopped.run / last).read_bytes() == (undisturbed.run / last).read_bytes()


# -- why others are rejected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_an_adapter_initialised_from_the_base_weights_would_fail_unnoticed(initialisation: str, make: Make):
    """First loss and hash are right although the trained model is not Stage 2, so stage adapter must reject it."""
    context = make({"init_lora_weights": initialisation})
    with pytest.raises(PreconditionError, match="does not belong to the unchanged base model"):
        run_stage(stage.run(context))
    _, trained = run_stage(train(context, ROWS, max_steps=1))
    assert abs(trained.first_loss - math.log(2)) < 1e-6
    with trained.model.disable_adapter():
        moved = (logits_of(trained.model, trained.tokenizer) - base_logits(context)).abs().max()
    assert moved > 1


def test_repeated_layers_would_give_a_wrong_reference(make: Make):
    context = make({"layer_replication": [[0, 2], [1, 2]]})
    with pytest.raises(PreconditionError, match="layer_replication"):
        run_stage(stage.run(context))
    with pytest.raises(NumbersError, match="The reference is not the Stage 2 adapter"):
        run_stage(train(context, ROWS, max_steps=1))


@pytest.mark.parametrize("initialisation", ["gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_unchanged_are_accepted(initialisation: str, make: Make):
    assert record(make({"init_lora_weights": initialisation, "r": 4}))


@pytest.mark.fault("D5")
def test_full_modules_are_not_trained_in_float16(make: Make):
    """On a GPU without bfloat16, --dtype auto then uses float32."""
    context = make({"modules_to_save": ["lm_head"]}, dtype="float16")
    policy = load_policy(load_base(context.config), Path(context.config.adapter_path), trainable=True)
    assert "1 tensors of the adapter (modules_to_save)" in overflow_in_float16(policy, [[2, 5, 7]])
