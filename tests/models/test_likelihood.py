"""Log-probabilities of replies: a batch gives the same as each reply alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models import likelihood
from engine.models.likelihood import reply_logps
from tests.support.tiny_models import build_base

ROWS = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15, 16]), ([4, 5, 6, 7, 8, 9, 10, 11], [3]), ([20, 21], [22, 23])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(build_base(tmp_path_factory.mktemp("base"))).eval()


def alone(model, prompt: list[int], reply: list[int]) -> float:
    """By definition: one row, one token after another."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reply])).logits[0]
    logps = torch.log_softmax(logits.float(), dim=-1)
    return sum(float(logps[len(prompt) + place - 1, token]) for place, token in enumerate(reply))


def test_each_reply_has_the_log_probability_that_it_has_alone(model):
    assert reply_logps(model, ROWS, pad=0) == pytest.approx([alone(model, *row) for row in ROWS], abs=1e-4)


def test_batches_that_are_cut_small_change_nothing(model, monkeypatch):
    whole = reply_logps(model, ROWS, pad=0)
    monkeypatch.setattr(likelihood, "LOGITS_PER_FORWARD", 1)
    assert reply_logps(model, ROWS, pad=0) == pytest.approx(whole, abs=1e-4)


def test_where_memory_runs_out_the_batch_is_halved(model, monkeypatch):
    whole, real = reply_logps(model, ROWS, pad=0), likelihood._logps

    def small_memory(model, rows, pad):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, rows, pad)

    monkeypatch.setattr(likelihood, "_logps", small_memory)
    assert reply_logps(model, ROWS, pad=0) == pytest.approx(whole, abs=1e-4)


def test_nothing_to_read_costs_nothing():
    assert reply_logps(None, [], pad=0) == []  # type: ignore[arg-type]
