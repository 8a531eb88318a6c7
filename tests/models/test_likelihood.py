"""Log-probabilities of replies: a batch gives the same as each reply alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models import likelihood
from engine.models.likelihood import reply_likelihoods
from tests.support.tiny_models import build_base

ROWS = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15, 16]), ([4, 5, 6, 7, 8, 9, 10, 11], [3]), ([20, 21], [22, 23])]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(build_base(tmp_path_factory.mktemp("base"))).eval()


def alone(model, prompt: list[int], reply: list[int]) -> tuple[float, float]:
    """By definition: one row, one token after another."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reply])).logits[0]
    logps = torch.log_softmax(logits.float(), dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(reply) - 1)
    logp = sum(float(logps[place, token]) for place, token in zip(places, reply, strict=True))
    return logp, sum(float(torch.distributions.Categorical(logits=logits[place]).entropy()) for place in places)


def read(model) -> list[float]:
    """Log-probability and entropy of each row, in one list."""
    return [value for one in reply_likelihoods(model, ROWS, pad=0) for value in one]


def test_each_reply_has_the_log_probability_and_the_entropy_that_it_has_alone(model):
    assert read(model) == pytest.approx([value for row in ROWS for value in alone(model, *row)], abs=1e-4)


def test_where_the_head_cannot_be_seen_the_logits_give_the_same(model, monkeypatch):
    tiles = read(model)
    monkeypatch.setattr(likelihood, "_reader", lambda model: likelihood._from_logits)
    assert read(model) == pytest.approx(tiles, abs=1e-4)


def test_batches_that_are_cut_small_change_nothing(model, monkeypatch):
    monkeypatch.setattr(likelihood, "_reader", lambda model: likelihood._from_logits)
    whole = read(model)
    monkeypatch.setattr(likelihood, "LOGITS_PER_FORWARD", 1)
    assert read(model) == pytest.approx(whole, abs=1e-4)


def test_where_memory_runs_out_the_batch_is_halved(model, monkeypatch):
    whole, real = read(model), likelihood._likelihoods

    def small_memory(model, reader, rows, pad):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, reader, rows, pad)

    monkeypatch.setattr(likelihood, "_likelihoods", small_memory)
    assert read(model) == pytest.approx(whole, abs=1e-4)


def test_nothing_to_read_costs_nothing():
    assert reply_likelihoods(None, [], pad=0) == []  # type: ignore[arg-type]
