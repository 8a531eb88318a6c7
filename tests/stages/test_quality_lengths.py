"""Pairs that training would refuse as too long show in the gate before a judge scores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import DataError
from engine.core.events import Check, Message
from engine.demo.preset import ASSETS
from engine.dpo.training.dataset import load_rows, measure_lengths
from engine.models.loading import load_tokenizer
from engine.run.context import Context
from engine.stages import quality
from tests.conftest import run_stage

SHORT = "Mend it kindly with glue."
LONG = (
    "First look where it is broken, and clean both sides with a dry cloth. Then spread a thin layer of glue on one of them, press "
    "the parts together, and hold them for a minute. Leave the thing overnight before anybody uses it again, because most kinds "
    "of glue need ten hours or more until they are hard. If that fails, ask somebody who repairs such things every day."
)


@pytest.fixture
def made(context: Callable[..., Context]) -> Callable[..., Context]:
    """A run with 40 pairs, every fourth of them long."""

    def of(*, read_models: bool = True, **options: Any) -> Context:
        values = {
            "base_model_id": str(ASSETS / "base"),
            "min_pairs": 5,
            "max_longer_share": 1.0,
            "max_length": 80,
            "relevance": False,
            "judge": "none",
        }
        at_work = context(**{**values, **options})
        if read_models:
            at_work.run.record_stage("preflight", status="done", result={"dtype": "float32"})
        path: Path = at_work.run / layout.PAIRS_JSONL
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(pair(number)) + "\n" for number in range(40)))
        return at_work

    return of


def pair(number: int) -> dict[str, Any]:
    prompt = f"How do I mend thing {number}?"
    reply = f"{LONG if number % 4 == 0 else SHORT} That is for {number}."
    return {
        "id": str(number),
        "prompt": prompt,
        "base_response": f"Kick thing {number} hard.",
        "revised_response": reply,
    }


def share(context: Context) -> dict[str, Any]:
    report = json.loads((context.run / layout.PAIRS_REPORT).read_text())
    return next(figure for figure in report["gate"]["figures"] if figure["name"] == "too_long_share")


@pytest.mark.fault("C8")
def test_the_gates_share_of_long_pairs_matches_training(made):
    context = made(max_too_long_share=0.6, accept_quality="nobody judges these")
    events, _ = run_stage(quality.run(context))
    rows = load_rows(context.run / layout.TRAIN_JSONL)
    lengths = measure_lengths(rows, load_tokenizer(context.config))
    expected = sum(length > 80 for length in lengths) / len(lengths)
    assert 0.1 < expected < 0.4
    assert share(context)["value"] == expected and share(context)["threshold"] == 0.6
    assert any(isinstance(event, Check) and event.name == "too long share" for event in events)


def test_too_many_long_pairs_keep_the_gate_shut_and_skip_the_judge(made):
    context = made(judge="demo")
    events: list[Any] = []
    with pytest.raises(DataError, match="too long share is") as refused:
        for event in quality.run(context):
            events.append(event)
    assert "--max-length" in refused.value.what_to_do
    assert not (context.run / layout.SCORES_JSONL).exists()
    assert any(isinstance(event, Message) and "The judge was skipped" in event.text for event in events)


def test_if_a_person_accepts_it_the_judge_scores_the_pairs(made):
    context = made(judge="demo", min_gain=-1, accept_quality="training may leave them out")
    run_stage(quality.run(context))
    assert (context.run / layout.SCORES_JSONL).exists() and share(context)["passes"] is False


def test_before_a_model_is_loaded_nothing_is_measured(made):
    context = made(read_models=False, accept_quality="nobody judges these")
    run_stage(quality.run(context))
    report = json.loads((context.run / layout.PAIRS_REPORT).read_text())
    assert "too_long_share" not in {figure["name"] for figure in report["gate"]["figures"]}
