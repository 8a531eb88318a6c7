"""Checks by logits, not by comparing texts, whether a text is a model's greedy output.

The two best logits of a random model are sometimes very close (2.9e-6 apart, once); another processor rounds them the
other way, and every following token is different.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Logits. Rounding in float32 moves them by 1e-5 at most; a token that is not the best is about 1 below it."""


def assert_greedy(model: PreTrainedModel, prompt: Sequence[int], reply: Sequence[int]) -> None:
    """Each token of `reply` is the most likely one by a plain forward pass: no cache, no padding, no batch."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0].float()
    before = logits[len(prompt) - 1 : -1]
    missed = before.max(dim=-1).values - before.gather(-1, torch.tensor(reply).unsqueeze(-1)).squeeze(-1)
    assert missed.max() < TOLERANCE, (
        f"tokens of {list(reply)} are below the best by {[round(m, 4) for m in missed.tolist()]}"
    )
