"""Choosing the next token of every row of a batch: the likeliest, or a draw from the nucleus.

A row draws by the inverse of its distribution function from its own stream of uniform numbers, one a token, made on the
CPU so that every device draws the same. So what a row says depends on its seed and not on how many rows stand beside
it, up to the rounding of floating point in a differently shaped matrix product.

Imported where it is used: it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.core.errors import NumbersError

FIRST_LOOK = 256
"""Tokens. The nucleus is nearly always among so many of the likeliest; only if it is not are all of them sorted."""


class Greedy:
    """The likeliest token."""

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        best = scores.max(dim=-1)
        _refuse_unless_finite(best.values)
        return best.indices


class Nucleus:
    """A draw from the smallest set of tokens that holds `top_p` of the probability (Holtzman et al. 2019)."""

    def __init__(
        self, temperature: float, top_p: float, seeds: Sequence[int], steps: int, device: torch.device | str
    ) -> None:
        self._temperature, self._top_p = temperature, top_p
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
        ]
        self._draws = torch.stack(draws).to(device)

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        """scores: (R, vocabulary); rows: (R,) which seeds; step: the how-manieth token of them all. Returns (R,)."""
        _refuse_unless_finite(scores.max(dim=-1).values)
        chances = torch.softmax(scores.float() / self._temperature, dim=-1)
        likeliest = torch.topk(chances, min(FIRST_LOOK, chances.shape[-1]), dim=-1)
        tokens, values = likeliest.indices, likeliest.values
        if bool((values.sum(dim=-1) < self._top_p).any()):
            values, tokens = torch.sort(chances, dim=-1, descending=True, stable=True)
        mass = values.double().cumsum(dim=-1)
        before = mass - values
        inside = (before < self._top_p).sum(dim=-1, keepdim=True)
        whole = mass.gather(-1, inside - 1)
        drawn = (mass <= self._draws[rows, step].unsqueeze(-1) * whole).sum(dim=-1, keepdim=True)
        return tokens.gather(-1, drawn.clamp(max=inside - 1)).squeeze(-1)


def _refuse_unless_finite(best: Tensor) -> None:
    if not bool(torch.isfinite(best).all()):
        raise NumbersError(
            "The model's scores are not finite.",
            "Its arithmetic overflows (float16 is too narrow for some models), or the adapter holds NaN.",
            "Use --dtype bfloat16 or float32; check the adapter with `stage3-tui --auto --until adapter`.",
        )
