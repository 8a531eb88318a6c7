"""Training warnings: issued once, with figures, and only for what chance does not explain."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.core.events import Message
from engine.dpo.training.warnings import WINDOW, TrainingWarnings
from engine.run.context import Context


def warnings_of(history: int = 0, **figures: Any) -> list[str]:
    """The warnings over 40 steps whose figures are functions of the step."""
    messages: list[Any] = []
    warnings = TrainingWarnings(messages.append, tokens_per_reply=50.0, pairs_per_step=8)
    steps = [
        {
            "step": step,
            "loss": 0.6,
            "rewards/accuracies": figures.get("accuracy", lambda _: 0.7)(step),
            "rewards/margins": figures.get("margin", lambda n: 0.1 + n % 3 / 100)(step),
            "logps/chosen": figures.get("chosen", lambda n: -80.0 - n % 5)(step),
        }
        for step in range(1, 41)
    ]
    warnings.replay(steps[:history])
    for logs in steps[history:]:
        warnings.record(logs["step"], logs)
    return [message.text for message in messages]


def test_a_training_that_goes_well_causes_no_warning():
    assert warnings_of() == []


@pytest.mark.fault("D18")
def test_accuracy_below_chance_for_long_is_reported_once_with_the_figure():
    texts = warnings_of(accuracy=lambda step: 0.25)
    assert len(texts) == 1 and "to step 21" in texts[0] and "in only 25% of the pairs" in texts[0]


def test_a_policy_that_stays_equal_to_the_reference_causes_no_warning():
    """At learning rate 0, every margin is exactly 0, and so is accuracy, which counts strict wins."""
    assert warnings_of(accuracy=lambda _: 0.0, margin=lambda _: 0.0) == []


def test_chance_alone_causes_few_warnings():
    """200 trainings with random figures, each with some 20 overlapping windows: few of them may cause a warning."""
    draw = random.Random(1)
    warned = sum(
        bool(warnings_of(accuracy=lambda _: sum(draw.random() < 0.5 for _ in range(8)) / 8)) for _ in range(200)
    )
    assert warned <= 12


def test_margins_below_zero_for_long_are_reported_and_noise_around_zero_is_not():
    texts = warnings_of(margin=lambda step: -0.3 + step % 3 / 50)
    assert len(texts) == 1 and "below 0" in texts[0] and "-0.2" in texts[0]
    assert warnings_of(margin=lambda step: (-0.2, 0.15)[step % 2]) == []


def test_chosen_replies_that_become_unlikely_are_reported_in_nats_per_token():
    texts = warnings_of(chosen=lambda step: -80.0 - 2 * step)
    assert len(texts) == 1 and "0.5" in texts[0] and "nats per token less likely" in texts[0]
    assert warnings_of(chosen=lambda step: -80.0 - step / 2) == []


def test_warnings_of_an_earlier_process_are_not_repeated_and_its_steps_count():
    assert warnings_of(history=30, accuracy=lambda step: 0.25) == []
    texts = warnings_of(history=15, accuracy=lambda step: 0.25)
    assert len(texts) == 1 and f"last {WINDOW} steps (to step 21)" in texts[0]


def test_a_real_training_passes_its_figures_on(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from engine.dpo.training import warnings as module
    from tests.conftest import run_stage
    from tests.support.tiny_models import build_adapter, build_base, build_context, pairs
    from tests.support.trainings import train

    monkeypatch.setattr(module, "COLLAPSE", -9.0)  # so that any change of the replies causes a warning
    base = build_base(tmp_path / "base")
    context = build_context(tmp_path / "run", base, build_adapter(tmp_path / "adapter", base))
    events, _ = run_stage(
        train(Context(context.config.model_copy(update={"num_train_epochs": 4.0}), context.run), pairs(24))
    )
    texts = [
        event.text for event in events if isinstance(event, Message) and "nats per token less likely" in event.text
    ]
    assert (
        len(texts) == 1 and "(to step 22)" in texts[0]
    )  # the warm-up starts at rate 0, so the first margin counts later
