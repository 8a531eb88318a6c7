"""Log-probabilities of replies: a batch gives the same values as each reply alone."""

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
    """Log-probability and entropy by definition: one row, one token after another."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reply])).logits[0]
    logps = torch.log_softmax(logits.float(), dim=-1)
    positions = range(len(prompt) - 1, len(prompt) + len(reply) - 1)
    logp = sum(float(logps[position, token]) for position, token in zip(positions, reply, strict=True))
    return logp, sum(
        float(torch.distributions.Categorical(logits=logits[position]).entropy()) for position in positions
    )


def values_of(model, rows=ROWS) -> list[float]:
    """Log-probability and entropy of each row, in one list."""
    return [value for one in reply_likelihoods(model, rows, pad=0) for value in one]


SYSTEM = list(range(30, 50))
"""A prefix that is long enough to be prefilled once for all rows."""
TWICE = [*range(60, 78)]
SHARING = [
    ([*SYSTEM, 5, 6], [8, 9]),
    ([*SYSTEM, 11], [12, 13, 14]),
    (TWICE, [15]),
    (TWICE, [3, 4, 5, 6]),
    ([*SYSTEM, 7], [10]),
]


def test_each_reply_has_the_same_log_probability_and_entropy_as_alone(model):
    assert values_of(model) == pytest.approx([value for row in ROWS for value in alone(model, *row)], abs=1e-4)


def test_small_batches_change_nothing(model, monkeypatch):
    full = values_of(model)
    monkeypatch.setattr(likelihood, "LOGITS_PER_FORWARD", 1)
    assert values_of(model) == pytest.approx(full, abs=1e-4)


def test_the_batch_is_halved_if_memory_runs_out(model, monkeypatch):
    full, real = values_of(model), likelihood._likelihoods

    def small_memory(model, rows, prefixes, pad):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, rows, prefixes, pad)

    monkeypatch.setattr(likelihood, "_likelihoods", small_memory)
    assert values_of(model) == pytest.approx(full, abs=1e-4)


def tokens_read(model, rows) -> tuple[list[float], int]:
    """The result, and how many columns the model was run on."""
    with forward_shapes(model) as shapes:
        values = values_of(model, rows)
    return values, sum(batch * columns for batch, columns in shapes)


def test_shared_prefixes_are_prefilled_once_and_change_nothing(model, monkeypatch):
    values, tokens = tokens_read(model, SHARING)
    monkeypatch.setattr(likelihood, "MIN_PREFIX_TOKENS", 1000)
    separate, all_tokens = tokens_read(model, SHARING)
    assert values == pytest.approx(separate, abs=1e-4)
    assert separate == pytest.approx([value for row in SHARING for value in alone(model, *row)], abs=1e-4)
    assert tokens < 0.7 * all_tokens


def test_a_model_with_a_short_window_shares_no_prefixes(tmp_path):
    windowed = AutoModelForCausalLM.from_pretrained(build_base(tmp_path, family="gemma2", sliding_window=8)).eval()
    values = values_of(windowed, SHARING)
    assert values == pytest.approx([value for row in SHARING for value in alone(windowed, *row)], abs=1e-4)


def test_no_rows_need_no_model():
    assert reply_likelihoods(None, [], pad=0) == []  # type: ignore[arg-type]
