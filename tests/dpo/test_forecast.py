"""The forecast's formulas compared with counted bytes, and how both are reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from engine.core.events import Message, RunStarted, StageFinished, StageStarted, TrainStep
from engine.dpo.planning.forecast import (
    START_SECONDS,
    Measurements,
    Shape,
    against_measured,
    forecast,
    generation_memory,
    kept_per_token,
    machine_of,
    seconds_at_work,
    training_memory,
    weight_bytes,
)
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.planning.workload import Workload
from engine.run.journal import Entry

GIB = 1 << 30
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAN = TrainingPlan(2, 4, False, "up front", "float32")


def model(kind: str, dtype: torch.dtype, targets: tuple[str, ...], layers: int) -> Any:
    config, cls = (GemmaConfig, GemmaForCausalLM) if kind == "gemma" else (LlamaConfig, LlamaForCausalLM)
    base = cls(
        config(
            vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=layers, num_attention_heads=3,
            num_key_value_heads=1, head_dim=16,
        )
    ).to(dtype)  # fmt: skip
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")).train()
    for name, parameter in policy.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    return policy


def kept_by_autograd(policy: Any, tokens: int, *, checkpointing: bool) -> int:
    """Bytes of the tensors that the layers' forward pass keeps for the backward pass, without parameters."""
    if checkpointing:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    own = {t.untyped_storage().data_ptr() for t in (*policy.parameters(), *policy.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept[address] = tensor  # kept alive, so that its address is not reused
        return tensor

    half = next(policy.parameters()).dtype != torch.float32
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        policy.get_base_model().model(input_ids=torch.arange(tokens)[None] % 64, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", ["gemma", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [ALL, ("q_proj", "v_proj"), ("q_proj", "v_proj", "gate_proj", "down_proj")])
def test_the_bytes_per_token_equal_what_autograd_keeps(kind: str, dtype: torch.dtype, targets: tuple[str, ...]):
    tokens = 512  # enough to make casts of the adapter's weights, which are kept once, negligible
    deep, flat = (
        kept_by_autograd(model(kind, dtype, targets, layers), tokens, checkpointing=False) for layers in (4, 2)
    )
    config = model(kind, dtype, targets, 2).config
    shape = Shape.of(config, {"target_modules": targets, "rank": 2})
    counted = (deep - flat) / 2 / tokens
    assert kept_per_token(shape, str(dtype).removeprefix("torch.")) == pytest.approx(counted, rel=0.01)


def test_with_gradient_checkpointing_a_layer_keeps_only_its_hidden_state():
    deep, flat = (
        kept_by_autograd(model("gemma", torch.float32, ALL, layers), 256, checkpointing=True) for layers in (4, 2)
    )
    assert (deep - flat) / 2 / 256 == pytest.approx(48 * 4, rel=0.02)


GEMMA_2B = Shape(
    hidden=2048, layers=18, intermediate=16384, heads=8, kv_heads=1, head_dim=256, vocab=256000,
    base_parameters=2_506_172_416, adapter_parameters=19_611_648, rank=16, targets=ALL,
)  # fmt: skip


def gemma(plan: TrainingPlan, max_length: int = 1024, **options: Any) -> float:
    return sum(training_memory(GEMMA_2B, plan, max_length=max_length, context=600 << 20, **options).values()) / GIB


def test_a_shape_is_read_from_the_configuration():
    config = GemmaConfig(vocab_size=256000, hidden_size=2048, num_hidden_layers=18, num_attention_heads=8,
                         num_key_value_heads=1, head_dim=256, intermediate_size=16384)  # fmt: skip
    shape = Shape.of(
        config, {"target_modules": [f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in ALL], "rank": 16}
    )
    assert shape.base_parameters == pytest.approx(GEMMA_2B.base_parameters, rel=1e-3)
    assert (shape.hidden, shape.q, shape.kv, set(shape.targets)) == (2048, 2048, 256, set(ALL))


def test_gemma_2b_fits_a_t4_one_pair_at_a_time_and_two_only_with_gradient_checkpointing():
    once = TrainingPlan(2, 4, False, "up front", "bfloat16")
    twice = TrainingPlan(1, 8, True, "up front", "bfloat16")
    assert gemma(twice) < gemma(twice.split(2)) < gemma(once.split(1)) < 14.6 < gemma(once)
    assert gemma(twice, 512) < gemma(twice) and gemma(twice, quantization_arguments=True) < gemma(twice) - 2


def test_a_live_reference_needs_more_and_float32_twice_the_weights():
    live = TrainingPlan(1, 8, True, "live", "bfloat16")
    assert gemma(live) > gemma(TrainingPlan(1, 8, True, "up front", "bfloat16"))
    assert weight_bytes(GEMMA_2B, "float32", False) == 2 * weight_bytes(GEMMA_2B, "float16", False)


def test_sharded_weights_are_gathered_a_layer_at_a_time():
    plan = TrainingPlan(1, 8, True, "live", "bfloat16")
    layer, embeddings = 2 * 2048 * (2 * 2048 + 2 * 256 + 3 * 16384), 2 * 2048 * 256000
    in_four = weight_bytes(GEMMA_2B, "bfloat16", False, 4)
    assert in_four == pytest.approx(2 * GEMMA_2B.base_parameters / 4 + embeddings + 2 * layer, rel=1e-4)
    assert gemma(plan) - gemma(plan, shards=4) == pytest.approx(
        (2 * GEMMA_2B.base_parameters - in_four + 15 * GEMMA_2B.adapter_parameters) / GIB, rel=1e-4
    )


def test_the_head_never_holds_all_logits_of_all_tokens():
    terms = training_memory(GEMMA_2B, TrainingPlan(8, 1, False, "up front", "bfloat16"), max_length=1024, context=0)
    assert terms["head"] < 2 * GIB < 8 * 2048 * 256000 * 4


def test_the_memory_of_generation_grows_with_its_rows():
    one, many = (
        sum(generation_memory(GEMMA_2B, "bfloat16", rows=n, longest=1536, context=0).values()) for n in (1, 33)
    )
    assert many - one == pytest.approx(32 * (2 * 1536 * 18 * 512 * 2 + 256000 * 14 + 1536 * 2 * (32768 + 8192)))


def test_the_memory_of_this_machine_is_plausible():
    machine = machine_of(torch.device("cpu"))
    assert 0 < machine.context < machine.room <= 2 * machine.total


# -- time --------------------------------------------------------------------------------------------------------------

MEASURED = Measurements(
    batch_size=8, reply_tokens=20.0, prefill_seconds=0.5, decode_seconds=0.1, record_bytes=1000, step_seconds=3.0,
    longest_prompt_tokens=20, longest_replies_tokens=160, prompt_tokens=30.0, replies_tokens=40.0, head_weight=0.5,
    checkpoint_bytes=5000, peak_bytes=7, peak_bytes_pairs=3,
)  # fmt: skip


WORK = Workload(
    prompts=16, train=12, held_out=4, replies=3, prompt_reads=1.5, max_new_tokens=64, epochs=2.0, save_total_limit=2,
    answered=4, everyday=10,
)  # fmt: skip
SHARE = (30 + 1.5 * 40) / (20 + 1.5 * 160)
"""Cost of a mean pair relative to the longest: the layers read all of it; the head, at half the cost, only the replies."""


def forecast_of(plan: TrainingPlan, **options: Any) -> Any:
    processes = {
        name: options.pop(name)
        for name in ("pair_processes", "evaluation_processes", "share_device")
        if name in options
    }
    measured = options.pop("measured", MEASURED)
    return forecast(measured, replace(WORK, **options), plan, **processes)


def test_a_reference_that_is_computed_up_front_is_counted_once():
    assert forecast_of(PLAN).seconds_training == pytest.approx(12 * SHARE * 3.0 * (2 + 1 / 3))
    live = TrainingPlan(2, 4, False, "live", "float32")
    assert forecast_of(live).seconds_training == pytest.approx(12 * SHARE * 3.0 * 2)


def test_pairs_take_the_time_of_their_prompts_and_tokens():
    assert forecast_of(PLAN).seconds_pairs == pytest.approx(2 * (1.5 * 0.5 + 3 * 30 * 0.1))
    assert forecast_of(PLAN, max_new_tokens=10).seconds_pairs == pytest.approx(2 * (1.5 * 0.5 + 3 * 10 * 0.1))


def test_processes_divide_the_time_but_have_to_start():
    """Processes that share a device make pairs no faster. The training step was measured in all processes at once."""
    alone, start = forecast_of(PLAN, prompts=160), START_SECONDS
    both = forecast_of(PLAN.for_processes(2), prompts=160, pair_processes=2)
    assert both.seconds_pairs == pytest.approx(alone.seconds_pairs / 2 + start)
    assert both.seconds_training == pytest.approx(alone.seconds_training / 2 + start)
    shared = forecast_of(PLAN.for_processes(2), prompts=160, pair_processes=2, share_device=True)
    assert shared.seconds_pairs == pytest.approx(alone.seconds_pairs + start)
    assert shared.seconds_training == both.seconds_training


def test_processes_divide_the_evaluation_but_have_to_start():
    loaded = replace(MEASURED, load_seconds=4.0)
    prefill, read = 2 * (4 + 10) / 8 * 0.5, (2 * 4 + 3 * 4) * SHARE * 3.0 / 3
    four = forecast_of(PLAN.for_processes(4), measured=loaded, evaluation_processes=4)
    batches = (1 + 1) * 30 * 0.1  # 2 of the prompts and 4 of the everyday questions, by 4 processes
    assert four.seconds_evaluation == pytest.approx(prefill / 4 + batches + read / 4 + START_SECONDS + 4.0)
    shared = forecast_of(PLAN.for_processes(4), measured=loaded, evaluation_processes=4, share_device=True)
    assert shared.seconds_evaluation == pytest.approx(prefill + 6 * 30 * 0.1 + read / 4 + START_SECONDS + 4.0)


def test_both_stages_load_the_models_however_few_pairs_there_are():
    loaded = replace(MEASURED, load_seconds=4.0)
    for count in (8, 800):
        quick, slow = (forecast_of(PLAN, measured=each, prompts=count) for each in (MEASURED, loaded))
        assert slow.seconds_pairs - quick.seconds_pairs == pytest.approx(4.0)
        assert slow.seconds_training - quick.seconds_training == pytest.approx(4.0)


def test_the_evaluation_generates_answers_and_reads_pairs_and_answers():
    answers = 2 * (4 / 8 * 0.5 + 1 * 30 * 0.1) + 2 * (10 / 8 * 0.5 + 2 * 30 * 0.1)
    read = (2 * 4 + 3 * 4) * SHARE * 3.0 / 3
    assert forecast_of(PLAN).seconds_evaluation == pytest.approx(answers + read)
    assert forecast_of(PLAN).seconds == pytest.approx(
        forecast_of(PLAN).seconds_pairs + forecast_of(PLAN).seconds_training + forecast_of(PLAN).seconds_evaluation
    )


def test_unusable_and_held_out_pairs_are_not_trained_on(config):
    options = config(num_examples=200, eval_fraction=0.1, min_eval_pairs=30, eval_prompts=20)
    work = Workload.of(options, 200, 0.5)
    assert (work.prompts, work.train, work.held_out, work.answered) == (200, 70, 30, 20)
    with_known_split = Workload.of(options, 200, 0.5, (90, 10))
    assert (with_known_split.train, with_known_split.held_out, with_known_split.answered) == (90, 10, 10)


def entries() -> list[Entry]:
    step = TrainStep(1, 2, 0.7, 0, 0, 0, 0, 0, 1, 9)
    timed = [
        (0, RunStarted("", "", 1, "")), (10, StageStarted("training")), (30, step), (45, Message("info", "…")),
        # killed and restarted
        (100, RunStarted("", "", 2, "")), (101, StageStarted("training")), (111, step), (112, step),
        (150, StageFinished("training", "done")), (151, StageStarted("packaging")), (190, step),
    ]  # fmt: skip
    return [Entry(number, float(time), event) for number, (time, event) in enumerate(timed)]


def test_the_time_of_a_stage_sums_its_starts_without_the_pauses():
    assert seconds_at_work(entries(), "training", (TrainStep,)) == 20 + 11
    assert seconds_at_work(entries(), "pairs", (TrainStep,)) == 0


def test_a_forecast_is_compared_with_the_measured_value():
    compared = against_measured(
        {"seconds_pairs": 90, "peak_bytes": 5, "disk": 1}, {"seconds_pairs": 120.0, "peak_bytes": 0.0}
    )
    assert compared == {"seconds_pairs": {"forecast": 90.0, "measured": 120.0, "relative_error": -0.25}}
