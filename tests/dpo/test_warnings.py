"""Training warnings: given once, with figures, only for what chance does not explain."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.core.events import Message
from engine.dpo.training.warnings import WINDOW, TrainingWarnings
from engine.run.context import Context


def watch(history: int = 0, **course: Any) -> list[str]:
    """The warnings in 40 steps whose figures are functions of the step."""
    said: list[Any] = []
    looking = TrainingWarnings(said.append, tokens_a_reply=50.0, pairs_a_step=8)
    steps = [
        {
            "step": step,
            "loss": 0.6,
            "rewards/accuracies": course.get("accuracy", lambda _: 0.7)(step),
            "rewards/margins": course.get("margin", lambda n: 0.1 + n % 3 / 100)(step),
            "logps/chosen": course.get("chosen", lambda n: -80.0 - n % 5)(step),
        }
        for step in range(1, 41)
    ]
    looking.recall(steps[:history])
    for logs in steps[history:]:
        looking.look(logs["step"], logs)
    return [event.text for event in said]


def test_a_training_that_goes_well_is_not_spoken_of():
    assert watch() == []


@pytest.mark.fault("D18")
def test_accuracy_below_chance_for_long_is_reported_once_with_the_figure():
    said = watch(accuracy=lambda step: 0.25)
    assert len(said) == 1 and "to step 21" in said[0] and "in only 25% of the pairs" in said[0]


def test_a_policy_that_stays_the_reference_is_not_called_swapped():
    """Learning rate 0: every margin is exactly 0, and so is accuracy, which counts strict wins."""
    assert watch(accuracy=lambda _: 0.0, margin=lambda _: 0.0) == []


def test_chance_alone_is_not_an_alarm():
    """200 courses of random figures, each with some 20 overlapping windows; few may raise an alarm."""
    draw = random.Random(1)
    alarms = sum(bool(watch(accuracy=lambda _: sum(draw.random() < 0.5 for _ in range(8)) / 8)) for _ in range(200))
    assert alarms <= 12


def test_margins_below_zero_for_long_are_reported_and_noise_about_zero_is_not():
    said = watch(margin=lambda step: -0.3 + step % 3 / 50)
    assert len(said) == 1 and "below 0" in said[0] and "-0.2" in said[0]
    assert watch(margin=lambda step: (-0.2, 0.15)[step % 2]) == []


def test_chosen_replies_that_become_unlikely_are_reported_in_nats_a_token():
    said = watch(chosen=lambda step: -80.0 - 2 * step)
    assert len(said) == 1 and "0.5" in said[0] and "nats per token less likely" in said[0]
    assert watch(chosen=lambda step: -80.0 - step / 2) == []


def test_what_an_earlier_process_said_is_not_said_again_and_its_steps_count():
    assert watch(history=30, accuracy=lambda step: 0.25) == []
    said = watch(history=15, accuracy=lambda step: 0.25)
    assert len(said) == 1 and f"last {WINDOW} steps (to step 21)" in said[0]


def test_a_real_training_shows_its_figures_to_the_watch(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from engine.dpo.training import warnings as module
    from tests.conftest import run_stage
    from tests.support.tiny_models import build_adapter, build_base, build_context, pairs
    from tests.support.trainings import train

    monkeypatch.setattr(module, "COLLAPSE", -9.0)  # so that whatever the replies do is told
    base = build_base(tmp_path / "base")
    context = build_context(tmp_path / "run", base, build_adapter(tmp_path / "adapter", base))
    events, _ = run_stage(
        train(Context(context.config.model_copy(update={"num_train_epochs": 4.0}), context.run), pairs(24))
    )
    said = [event.text for event in events if isinstance(event, Message) and "nats per token less likely" in event.text]
    assert len(said) == 1 and "(to step 22)" in said[0]  # the warm-up begins at rate 0: so does what can be judged
