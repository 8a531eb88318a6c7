"""Whether a text is what a model says greedily, decided by logits and not by comparing texts.

The two best logits of a random model lie close to each other now and then (2.9e-6 apart, once); another processor rounds
them the other way round, and every token after that is another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Logits. Rounding in float32 moves them by 1e-5 at most; a token that is not the best lies about 1 below it."""


def assert_greedy(model: PreTrainedModel, prompt: Sequence[int], reply: Sequence[int]) -> None:
    """Each token of `reply` is the most likely one by a plain forward pass: no cache, no padding, no batch."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0].float()
    before = logits[len(prompt) - 1 : -1]
    missed = before.max(dim=-1).values - before.gather(-1, torch.tensor(reply).unsqueeze(-1)).squeeze(-1)
    assert missed.max() < TOLERANCE, (
        f"tokens of {list(reply)} lie below the best by {[round(m, 4) for m in missed.tolist()]}"
    )
