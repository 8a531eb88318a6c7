"""A guard for tests that compare texts: no token may be a close call that another processor would round differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

LOGITS = 1e-3
"""Required gap between the best logit and the next one; float32 rounding moves them by 1e-5 at most."""
MASS = 1e-5
"""Required distance of a draw, or of the end of the nucleus, from the next token; rounding moves it by 1e-7."""


@pytest.fixture
def clear_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every token choice of this test is clear enough for any processor. If it fails, use another seed or other prompts."""
    from engine.models.generation.samplers import Greedy, Nucleus

    greedy, nucleus = Greedy.__call__, Nucleus.__call__
    margins: dict[str, list[float]] = {"logits": [1.0], "mass": [1.0]}

    def choose_best(self: Greedy, scores: Any, rows: Any, step: int) -> Any:
        best = scores.float().topk(2, dim=-1).values
        margins["logits"].append(float((best[:, 0] - best[:, 1]).min()))
        return greedy(self, scores, rows, step)

    def draw(self: Nucleus, scores: Any, rows: Any, step: int) -> Any:
        margins["mass"].append(_margin_of_draws(self, scores, rows, step))
        return nucleus(self, scores, rows, step)

    monkeypatch.setattr(Greedy, "__call__", choose_best)
    monkeypatch.setattr(Nucleus, "__call__", draw)
    yield
    assert min(margins["logits"]) > LOGITS, f"two logits are only {min(margins['logits']):.1e} apart"
    assert min(margins["mass"]) > MASS, f"a draw is only {min(margins['mass']):.1e} from another token"


def _margin_of_draws(sampler: Any, scores: Any, rows: Any, step: int) -> float:
    chances = (scores.float() / sampler._temperature).softmax(dim=-1).sort(dim=-1, descending=True).values
    mass = chances.double().cumsum(dim=-1)
    before = mass - chances
    inside = before < sampler._top_p
    whole = mass.gather(-1, inside.sum(dim=-1, keepdim=True) - 1)
    of_draw = (mass - sampler._draws[rows, step].unsqueeze(-1) * whole)[inside].abs().min()
    of_end = (before - sampler._top_p).abs().min() if sampler._top_p < 1 else 1.0
    return min(float(of_draw), float(of_end))
