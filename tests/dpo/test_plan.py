"""The training plan: which one is chosen for which memory, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError
from engine.dpo.planning.plan import TrainingPlan, choose_plan, micro_batches, plan_as_configured, reference_for
from engine.dpo.planning.process_count import number_of_processes

GIB = 1 << 30


def needed(plan: TrainingPlan) -> float:
    """2 GiB plus 1 GiB per pair; a quarter of that with gradient checkpointing."""
    return GIB * (2 + plan.micro_batch / (4 if plan.gradient_checkpointing else 1))


def chosen(config: Stage3Config, room: float, max_micro_batch: int | None = None) -> TrainingPlan:
    return choose_plan(config, "bfloat16", "the GPU supports it", needed, room * GIB, max_micro_batch)


def test_the_largest_micro_batch_that_fits_is_chosen_and_the_effective_batch_stays(config: Callable[..., Stage3Config]):
    for room, expected in (
        (10, (8, 1, False)),
        (6, (4, 2, False)),
        (3, (1, 8, False)),
        (2.9, (2, 4, True)),
        (2.25, (1, 8, True)),
    ):
        plan = chosen(config(), room)
        assert (plan.micro_batch, plan.accumulation, plan.gradient_checkpointing) == expected
        assert plan.effective_batch == 8


def test_if_nothing_fits_the_smallest_plan_is_chosen(config: Callable[..., Stage3Config]):
    assert needed(chosen(config(), 1)) == min(needed(TrainingPlan(1, 8, True, "live", "")), needed(chosen(config(), 1)))


def test_options_that_are_set_are_kept(config: Callable[..., Stage3Config]):
    assert chosen(config(gradient_checkpointing=True), 99).gradient_checkpointing
    assert not chosen(config(gradient_checkpointing=False), 1).gradient_checkpointing
    assert chosen(config(cpu_ref_model=False), 99).reference == "live"
    assert chosen(config(cpu_ref_model=True, num_train_epochs=0.5), 99).reference == "up front"


def test_the_reference_is_computed_up_front_unless_only_some_pairs_are_read(config: Callable[..., Stage3Config]):
    assert reference_for(config())[0] == "up front"  # the notebook's --cpu-ref-model
    assert reference_for(config(num_train_epochs=0.5))[0] == "live"


def test_every_choice_has_a_reason_with_figures(config: Callable[..., Stage3Config]):
    why = chosen(config(), 6).why
    assert why["micro_batch"] == "needs 6.0 of 6.0 GiB; 8 would need 10.0"
    assert "all activations fit" in why["gradient_checkpointing"] and why["dtype"] == "the GPU supports it"
    assert "would need 3.0 of 2.9 GiB" in chosen(config(), 2.9).why["gradient_checkpointing"]


def test_the_micro_batch_does_not_exceed_the_useful_size(config: Callable[..., Stage3Config]):
    assert chosen(config(), 99, max_micro_batch=2).micro_batch == 2
    assert chosen(config(), 99, max_micro_batch=0).micro_batch == 1


@pytest.mark.parametrize(("effective", "steps"), [(8, [8, 4, 2, 1]), (6, [6, 3, 1]), (7, [7, 1]), (12, [12, 6, 3, 1])])
def test_a_plan_is_reduced_by_halves_that_divide_the_effective_batch(effective: int, steps: list[int]):
    plan: TrainingPlan | None = TrainingPlan(effective, 1, False, "live", "float32")
    seen = []
    while plan is not None:
        assert plan.effective_batch == effective
        seen.append((plan.micro_batch, plan.gradient_checkpointing))
        plan = plan.reduce()
    assert seen == [*((step, False) for step in steps), (1, True)]
    assert TrainingPlan(1, 8, False, "live", "float32").reduce(may_checkpoint=False) is None


def test_micro_batches_divide_the_batch():
    assert micro_batches(12) == [12, 6, 4, 3, 2, 1]


def test_a_plan_survives_its_record_and_sets_the_trainers_options(config: Callable[..., Stage3Config]):
    plan = chosen(config(), 6)
    assert TrainingPlan.from_dict(plan.as_dict()) == plan
    applied = plan.applied_to(config())
    assert (applied.per_device_train_batch_size, applied.gradient_accumulation_steps) == (4, 2)
    assert (applied.gradient_checkpointing, applied.cpu_ref_model, applied.dtype) == (False, True, "bfloat16")
    for damaged in (None, [], {}, {**plan.as_dict(), "micro_batch": "many"}, {**plan.as_dict(), "accumulation": 0}):
        assert TrainingPlan.from_dict(damaged) is None


def test_without_preflight_the_batch_is_as_configured_and_activations_are_recomputed(
    config: Callable[..., Stage3Config],
):
    plan = plan_as_configured(config(), "float32")
    assert (plan.micro_batch, plan.accumulation, plan.gradient_checkpointing) == (1, 8, True)


@pytest.mark.parametrize(
    "micro_batch, processes, split", [(8, 2, (4, 1)), (2, 2, (2, 2)), (1, 4, (1, 2)), (4, 8, (1, 1))]
)
def test_a_plan_for_several_processes_keeps_the_effective_batch_and_has_no_larger_passes(
    micro_batch: int, processes: int, split: tuple[int, int], config: Callable[..., Stage3Config]
):
    alone = TrainingPlan(1, 8, False, "live", "float32").split(micro_batch)
    plan = alone.for_processes(processes)
    assert (plan.micro_batch, plan.accumulation, plan.effective_batch) == (*split, 8)
    assert plan.for_processes(1).effective_batch == 8 and plan.in_words.startswith(
        f"{processes} processes × {split[0]} × "
    )
    read = plan.applied_to(config())
    assert read.per_device_train_batch_size * read.gradient_accumulation_steps == 8


@pytest.mark.parametrize("number, nearest", [(3, "are 2 and 4"), (7, "are 4 and 8"), (9, "is 8")])
def test_numbers_of_processes_that_do_not_divide_a_step_are_an_error_with_the_nearest_ones(
    number: int, nearest: str, config: Callable[..., Stage3Config]
):
    with pytest.raises(ConfigError, match=rf"8 pairs of one optimizer step .* among {number} processes.* {nearest}\."):
        config(num_processes=number)
    assert config(num_processes=4).num_processes == 4
    with pytest.raises(ConfigError, match="nearest possible numbers are 3 and 6"):
        config(num_processes=4, per_device_train_batch_size=3, gradient_accumulation_steps=2)


def test_on_a_cpu_one_process_trains_by_default(config: Callable[..., Stage3Config]):
    assert number_of_processes(config(device="cpu")) == 1
    assert number_of_processes(config(device="cpu", num_processes=4)) == 4
