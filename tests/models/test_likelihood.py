"""Log-probabilities of replies: a batch gives the same as each reply alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.models import likelihood
from engine.models.likelihood import reply_likelihoods
from tests.support.forward_shapes import forward_shapes
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


def read(model, rows=ROWS) -> list[float]:
    """Log-probability and entropy of each row, in one list."""
    return [value for one in reply_likelihoods(model, rows, pad=0) for value in one]


SYSTEM = list(range(30, 50))
"""A beginning that is long enough to be read once for all rows."""
TWICE = [*range(60, 78)]
SHARING = [
    ([*SYSTEM, 5, 6], [8, 9]),
    ([*SYSTEM, 11], [12, 13, 14]),
    (TWICE, [15]),
    (TWICE, [3, 4, 5, 6]),
    ([*SYSTEM, 7], [10]),
]


def test_each_reply_has_the_log_probability_and_the_entropy_that_it_has_alone(model):
    assert read(model) == pytest.approx([value for row in ROWS for value in alone(model, *row)], abs=1e-4)


def test_batches_that_are_cut_small_change_nothing(model, monkeypatch):
    whole = read(model)
    monkeypatch.setattr(likelihood, "LOGITS_PER_FORWARD", 1)
    assert read(model) == pytest.approx(whole, abs=1e-4)


def test_where_memory_runs_out_the_batch_is_halved(model, monkeypatch):
    whole, real = read(model), likelihood._likelihoods

    def small_memory(model, rows, prefixes, pad):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, rows, prefixes, pad)

    monkeypatch.setattr(likelihood, "_likelihoods", small_memory)
    assert read(model) == pytest.approx(whole, abs=1e-4)


def tokens_read(model, rows) -> tuple[list[float], int]:
    """What was found, and how many columns the model was given."""
    with forward_shapes(model) as shapes:
        found = read(model, rows)
    return found, sum(batch * columns for batch, columns in shapes)


def test_what_prompts_have_in_common_is_read_once_and_changes_nothing(model, monkeypatch):
    found, tokens = tokens_read(model, SHARING)
    monkeypatch.setattr(likelihood, "MIN_PREFIX_TOKENS", 1000)
    apart, all_tokens = tokens_read(model, SHARING)
    assert found == pytest.approx(apart, abs=1e-4)
    assert apart == pytest.approx([value for row in SHARING for value in alone(model, *row)], abs=1e-4)
    assert tokens < 0.7 * all_tokens


def test_a_model_with_a_short_window_reads_every_row_whole(tmp_path):
    windowed = AutoModelForCausalLM.from_pretrained(build_base(tmp_path, family="gemma2", sliding_window=8)).eval()
    found = read(windowed, SHARING)
    assert found == pytest.approx([value for row in SHARING for value in alone(windowed, *row)], abs=1e-4)


def test_nothing_to_read_costs_nothing():
    assert reply_likelihoods(None, [], pad=0) == []  # type: ignore[arg-type]
