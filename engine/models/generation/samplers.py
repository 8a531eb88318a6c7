"""Choose the next token of each row: greedily, or by nucleus sampling.

Each row has its own stream of uniform random numbers, one per token, and samples by inverting its cumulative distribution. The
numbers are drawn on the CPU, so they are the same on every device. A row's text therefore depends on its seed and not on the
batch, up to floating-point rounding in matrix products of different shapes.

Imports torch; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.core.errors import NumbersError

TOP_K = 256
"""The nucleus almost always lies within this many top tokens; only if it does not is the whole vocabulary sorted."""


class Greedy:
    """The most likely token."""

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        best = logits.max(dim=-1)
        _refuse_unless_finite(best.values)
        return best.indices


class Nucleus:
    """Samples from the smallest set of tokens with `top_p` of the probability (Holtzman et al. 2019)."""

    def __init__(
        self, temperature: float, top_p: float, seeds: Sequence[int], steps: int, device: torch.device | str
    ) -> None:
        self._temperature, self._top_p = temperature, top_p
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
        ]
        self._draws = torch.stack(draws).to(device)

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """logits (R, V); rows (R,), the index of each row's seed; step, the index of the token. Returns tokens, (R,)."""
        _refuse_unless_finite(logits.max(dim=-1).values)
        probs = torch.softmax(logits.float() / self._temperature, dim=-1)  # (R, V)
        top = torch.topk(probs, min(TOP_K, probs.shape[-1]), dim=-1)
        tokens, top_probs = top.indices, top.values  # (R, K), most likely first
        if bool((top_probs.sum(dim=-1) < self._top_p).any()):
            top_probs, tokens = torch.sort(probs, dim=-1, descending=True, stable=True)
        cumulative = top_probs.double().cumsum(dim=-1)  # (R, K)
        before = cumulative - top_probs  # (R, K), the mass of all likelier tokens
        nucleus_size = (before < self._top_p).sum(dim=-1, keepdim=True)  # (R, 1)
        nucleus_mass = cumulative.gather(-1, nucleus_size - 1)  # (R, 1)
        # The first token whose cumulative probability exceeds the draw, (R, 1).
        drawn = (cumulative <= self._draws[rows, step].unsqueeze(-1) * nucleus_mass).sum(dim=-1, keepdim=True)
        return tokens.gather(-1, drawn.clamp(max=nucleus_size - 1)).squeeze(-1)


def _refuse_unless_finite(best: Tensor) -> None:
    if not bool(torch.isfinite(best).all()):
        raise NumbersError(
            "The model's logits are not finite.",
            "The arithmetic overflows (float16 is too narrow for some models), or the adapter contains NaN.",
            "Use --dtype bfloat16 or float32; check the adapter with `stage3-tui --auto --until adapter`.",
        )
