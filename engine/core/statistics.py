"""Shares, means and significance tests: exact or with an interval, and deterministic."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

BOOTSTRAP_SAMPLES = 2000
Z_95 = 1.959964


def fraction(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def win_tie_loss(differences: Sequence[float]) -> tuple[int, int, int]:
    """How many values are above, at and below 0."""
    wins = sum(difference > 0 for difference in differences)
    losses = sum(difference < 0 for difference in differences)
    return wins, len(differences) - wins - losses, losses


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test. Ties are ignored; 1.0 if there are no wins and no losses."""
    n = wins + losses
    tail: int = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def mcnemar_test(before: Sequence[bool], after: Sequence[bool]) -> float:
    """McNemar's exact p-value for changes from False to True; 1.0 unless more changed that way than back."""
    both = list(zip(before, after, strict=True))
    up = sum(now and not then for then, now in both)
    down = sum(then and not now for then, now in both)
    return sign_test(up, down) if up > down else 1.0


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979), with a fixed seed; (nan, nan) without values."""
    if not values:
        return math.nan, math.nan
    draw = random.Random(seed)
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAP_SAMPLES))
    return means[int(0.025 * BOOTSTRAP_SAMPLES)], means[int(0.975 * BOOTSTRAP_SAMPLES) - 1]


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), 95 % by default; (0, 1) without values."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
