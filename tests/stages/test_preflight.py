"""What preflight chooses by trying, what it refuses, and what it suggests instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core import layout
from engine.core.errors import NumbersError, PreconditionError
from engine.core.events import Check, Message, Progress
from engine.demo.preset import demo_defaults
from engine.dpo.planning.forecast import Machine
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.training import trl_trainer
from engine.dpo.training.worker_messages import rank_log
from engine.models import loading, number_format
from engine.models.chat_template import conversation_ids
from engine.models.loading import (
    load_base,
    load_policy,
    load_tokenizer,
    quantization_arguments,
    resolve_dtype,
    restore_adapter,
)
from engine.models.number_format import choose_dtype, overflow_in_float16
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.preflight import machine
from engine.preflight.plan_search import PlanInputs, require_memory
from engine.run.context import Context
from engine.run.folder import Run
from engine.stages import adapter as adapter_stage
from engine.stages import preflight
from tests.conftest import run_stage
from tests.dpo.test_forecast import GEMMA_2B as GEMMA
from tests.support.tiny_models import build_adapter, build_base, build_context, pairs

GIB = 1 << 30


@pytest.fixture
def demo(tmp_path: Path, config: Callable[..., Any]) -> Callable[..., Context]:
    """A demo run whose stage adapter is done."""

    def made(**options: Any) -> Context:
        small = {"num_examples": 8, "split": "train[:8]", "max_length": 96, "output_dir": tmp_path / "run"}
        values = {**demo_defaults(), **small, **options}
        context = Context(config(**values), Run(tmp_path / "run"))
        _, result = run_stage(adapter_stage.run(context))
        context.run.record_stage("adapter", status="done", result=dict(result.facts))
        return context

    return made


def checks(events: list[Any]) -> dict[str, str]:
    return {event.name: event.detail for event in events if isinstance(event, Check)}


def a_machine(gib: float, device: str = "cpu") -> Callable[..., Machine]:
    return lambda _: Machine(device, int(gib * GIB), int(gib * GIB), 0, 64 * GIB)


@pytest.mark.fault("D22")
def test_the_preflight_chooses_a_plan_forecasts_and_records_both(demo: Callable[..., Context]):
    context = demo()
    events, result = run_stage(preflight.run(context))
    facts = json.loads(json.dumps(dict(result.facts)))  # what run.json keeps
    plan = TrainingPlan.from_dict(facts["plan"])
    assert plan is not None and (plan.micro_batch, plan.accumulation, plan.reference) == (8, 1, "up front")
    assert set(plan.why) == {"micro_batch", "gradient_checkpointing", "reference", "dtype"} and all(plan.why.values())
    assert facts["dtype"] == "float32" and facts["memory"]["activations"] > 0
    assert facts["forecast"]["seconds_training"] > 0 and facts["forecast"]["peak_bytes"] > 100 << 20
    rehearsed = [event.done for event in events if isinstance(event, Progress) and event.unit == "steps rehearsed"]
    assert rehearsed[0] == 0 and rehearsed[-1] == 3 == max(rehearsed)
    found = checks(events)
    assert {"number format", "memory", "plan", "resume", "archive", "forecast: memory, training"} <= found.keys()
    assert not (context.run / "preflight/trial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_rehearsal_trains_on_as_many_processes_as_the_run(sharding: str, demo: Callable[..., Context]):
    context = demo(num_processes=2, sharding=sharding, pilot_prompts=0)
    events, result = run_stage(preflight.run(context))
    found = checks(events)
    assert "in each of 2 processes, loss starts at ln 2" in found["training step"]
    assert "resumed from step" in found["resume"] and "archive" in found
    assert result.facts["plan"]["processes"] == 2
    assert not (context.run / layout.PROCESSES_DIR).exists()


@pytest.mark.slow
def test_the_logs_of_processes_that_fail_in_the_rehearsal_are_kept(
    demo: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAILPOINTS_STAGE3", "loss=nan@1")
    context = demo(num_processes=2, pilot_prompts=0)
    with pytest.raises(NumbersError, match="The loss is nan"):
        run_stage(preflight.run(context))
    assert "loss is nan" in rank_log(context.run, 0).read_text()


@pytest.mark.fault("D8")
def test_a_plan_that_does_not_fit_the_longest_pair_is_reduced_until_it_does(
    demo: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    real = trl_trainer.Stage3Trainer.compute_loss

    def small(self: Any, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        if self.pairs_per_pass > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB.")
        return real(self, model, inputs, *args, **more)

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "compute_loss", small)
    events, result = run_stage(preflight.run(demo()))
    plan = TrainingPlan.from_dict(result.facts["plan"])
    assert plan is not None and (plan.micro_batch, plan.accumulation) == (2, 4)
    assert plan.why["micro_batch"] == "4 was tried and did not fit"
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert len(warnings) == 2 and all("Tried to allocate 1.95 GiB" in text for text in warnings)


def test_a_pair_that_cannot_fit_is_refused_with_options_that_would(
    demo: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB.")

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "compute_loss", never)
    with pytest.raises(PreconditionError, match="needs more memory") as refused:
        run_stage(preflight.run(demo()))
    assert "--max-length 48" in refused.value.what_to_do and "activations" in refused.value.why


def test_a_model_that_cannot_fit_is_refused_before_anything_is_tried(
    demo: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "machine_of", a_machine(0.01))
    with pytest.raises(PreconditionError, match=r"training needs 0\.\d GiB at its peak, but only 0\.0") as refused:
        run_stage(preflight.run(demo(cpu_ref_model=False, gradient_checkpointing=False)))
    assert refused.value.exit_code == 3
    for way in ("--gradient-checkpointing (0.", "--cpu-ref-model (0.", "--max-length 48 (0."):
        assert way in refused.value.what_to_do


def test_on_a_gpu_the_advice_includes_4_bits(demo: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    context = demo()
    inputs = PlanInputs(
        context.config.model_copy(update={"dtype": "bfloat16"}),
        replace(GEMMA, layers=18),
        Machine("cuda", 4 * GIB, 4 * GIB, 600 << 20, 64 * GIB),
        "",
    )
    with pytest.raises(PreconditionError, match=r"but only 4\.0") as refused:
        require_memory(inputs)
    assert "--load-in-4bit (" in refused.value.what_to_do


def test_host_memory_keeps_a_reserve_and_gpu_memory_a_small_one(demo: Callable[..., Context]):
    context = demo(max_length=64)
    config = context.config.model_copy(update={"dtype": "float32"})
    for device, most in (("cpu", 0.6), ("cuda", 0.92)):
        inputs = PlanInputs(config, GEMMA, a_machine(30, device)(None), "")
        assert inputs.needed(inputs.choose()) <= most * 30 * GIB


# -- the chat template -------------------------------------------------------------------------------------------------


def test_the_chat_template_is_checked_before_anything_is_loaded(tiny_run: Context):
    check = next(event for event in preflight.run(tiny_run) if isinstance(event, Check))
    assert (check.name, check.status) == ("chat template", "ok")
    assert check.detail == "a reply ends with <end_of_turn>; a system message is merged into the first user turn"


def test_a_template_that_cannot_be_trained_with_is_refused_before_a_weight_is_loaded(
    tiny_run: Context, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "load_base", lambda *_: pytest.fail("weights were loaded"))
    template = Path(tiny_run.config.base_model_id) / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant: ")
    with pytest.raises(PreconditionError, match="no special token at which generation could stop") as refused:
        run_stage(preflight.run(tiny_run))
    assert refused.value.exit_code == 3


@pytest.fixture
def tiny_run(tmp_path: Path) -> Context:
    base = build_base(tmp_path / "base")
    return build_context(tmp_path / "run", base, build_adapter(tmp_path / "adapter", base))


# -- the number format -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    base = build_base(folder / "base")
    return base, build_adapter(folder / "adapter", base)


def half_policy(context: Context, tiny: tuple[Path, Path], scale: float = 1.0) -> Any:
    base = load_base(context.config.model_copy(update={"dtype": "float16"}))
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "gate_proj" in name or "up_proj" in name:
                parameter.mul_(scale)
    return load_policy(base, tiny[1], trainable=True)


def prompt_ids(context: Context) -> list[list[int]]:
    tokenizer = load_tokenizer(context.config)
    return [conversation_ids(tokenizer, row["prompt"], add_generation_prompt=True) for row in pairs(3)]  # type: ignore[arg-type]


@pytest.mark.fault("D3")
def test_float16_is_tried_on_the_real_adapter_and_refused_if_it_overflows(tiny: tuple[Path, Path], tmp_path: Path):
    context = build_context(tmp_path / "run", *tiny)
    assert overflow_in_float16(half_policy(context, tiny), prompt_ids(context)) == ""
    assert "not finite" in overflow_in_float16(half_policy(context, tiny, scale=3000.0), prompt_ids(context))


@pytest.mark.fault("D3")
def test_an_overflowing_gradient_counts_as_well(tiny: tuple[Path, Path], tmp_path: Path):
    context = build_context(tmp_path / "run", *tiny)
    policy = half_policy(context, tiny)
    next(p for n, p in policy.named_parameters() if "lora_B" in n).register_hook(lambda gradient: gradient / 0)
    assert "1 gradients" in overflow_in_float16(policy, prompt_ids(context))


@pytest.mark.fault("D4")
@pytest.mark.parametrize(
    ("has_bfloat16", "overflow", "expected"),
    [(True, "", "bfloat16"), (False, "", "float16"), (False, "a prompt gives NaN", "float32")],
)
def test_on_a_gpu_the_number_format_depends_on_its_support_and_the_trial(
    has_bfloat16: bool, overflow: str, expected: str, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(number_format, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(number_format, "gpu_has_bfloat16", lambda _: has_bfloat16)
    dtype, why = choose_dtype(config(), lambda: overflow)
    assert dtype == expected and why and overflow in why
    assert choose_dtype(config(dtype="float16"), lambda: "not asked")[0] == "float16"


def test_preflights_choices_hold_for_the_whole_run(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(loading, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(loading, "gpu_has_bfloat16", lambda _: False)
    run = config(output_dir=tmp_path / "run")
    assert resolve_dtype(run) == torch.float32  # before it: what is always right
    Run(tmp_path / "run").record_stage("preflight", status="done", result={"dtype": "float16"})
    assert resolve_dtype(run) == torch.float16


# -- 4 bits ------------------------------------------------------------------------------------------------------------


def test_4_bits_without_a_gpu_are_refused(config: Callable[..., Any]):
    with pytest.raises(PreconditionError, match="the device is cpu"):
        load_base(config(load_in_4bit=True, device="cpu"))


def test_4_bits_without_bitsandbytes_are_refused_with_the_extra_to_install(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    import importlib.util

    monkeypatch.setattr(loading, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreconditionError, match="bitsandbytes") as refused:
        quantization_arguments(config(load_in_4bit=True), torch.bfloat16)
    assert "stage3-tui[bitsandbytes]" in refused.value.what_to_do


def test_4_bits_compute_in_16(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    monkeypatch.setattr(loading, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(PreconditionError, match="float32"):
        quantization_arguments(config(load_in_4bit=True), torch.float32)


def test_an_adapter_that_trl_rounded_is_restored(tiny: tuple[Path, Path], tmp_path: Path):
    context = build_context(tmp_path / "run", *tiny)
    policy = load_policy(load_base(context.config), tiny[1], trainable=True)
    policy.load_adapter(str(tiny[1]), adapter_name="ref")
    policy.set_adapter("default")  # PEFT 0.20 takes the one that was loaded last
    before = hash_tensors(adapter_tensors(policy, "default"))
    own = [parameter for name, parameter in policy.named_parameters() if ".default." in name]
    for parameter in own:
        parameter.data = parameter.data.to(torch.bfloat16)
    restore_adapter(policy, "ref")
    assert hash_tensors(adapter_tensors(policy, "default")) == before
    assert own and all(parameter.requires_grad for parameter in own)


# -- tensorboard -------------------------------------------------------------------------------------------------------


def test_the_figures_of_each_step_are_written_for_tensorboard():
    from engine.dpo.training.callbacks import TensorBoardCallback

    class Writer:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float, int]] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, value, step))

        def flush(self) -> None: ...

    class State:
        global_step = 3

    writer: Any = Writer()
    TensorBoardCallback(writer).on_log(None, State(), None, logs={"loss": 0.5, "note": "text"})  # type: ignore[arg-type]
    assert writer.seen == [("train/loss", 0.5, 3)]


def test_tensorboard_that_is_not_installed_names_the_extra(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import sys

    from tests.support.trainings import train

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    context = build_context(tmp_path / "run", *tiny, report_to="tensorboard")
    with pytest.raises(PreconditionError, match="tensorboard") as refused:
        run_stage(train(context, pairs(4)))
    assert "stage3-tui[tensorboard]" in refused.value.what_to_do
    assert not (context.run / layout.CHECKPOINTS_DIR / "checkpoint-1").exists()
