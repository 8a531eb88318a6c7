"""Is Stage 3 better than Stage 2? One word and its reasons, from figures alone.

Reward accuracy alone misleads: it can be 1.0 while the answers stay as flawed as they were, or stop being sentences. So
the word rests on what the two models answered to held-out prompts: a judge's scores where there is a judge, and whether
the answers are usable at all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Word = Literal["better", "no different", "worse", "cannot tell"]

MIN_PROMPTS = 15
"""Of fewer, even a clear majority is too easily chance: 10 wins of 14 have p = 0.18."""
SIGNIFICANCE = 0.05
MAX_UNUSABLE_RISE = 0.05
"""A share of unusable answers that rises by more can not be better, whatever a judge says of the others."""
BOOTSTRAP_SAMPLES = 2000
Z_95 = 1.959964


@dataclass(frozen=True)
class Comparison:
    """What is known of each held-out prompt; the lists have one entry a prompt, in the same order."""

    stage2_unusable: Sequence[bool]
    stage3_unusable: Sequence[bool]
    stage2_scores: Sequence[float] | None = None
    """A judge's; None where nothing scored."""
    stage3_scores: Sequence[float] | None = None

    @property
    def prompts(self) -> int:
        return len(self.stage2_unusable)

    @property
    def differences(self) -> list[float]:
        """Stage 3's score less Stage 2's, prompt by prompt."""
        if self.stage2_scores is None or self.stage3_scores is None:
            return []
        return [after - before for before, after in zip(self.stage2_scores, self.stage3_scores, strict=True)]


@dataclass(frozen=True)
class Verdict:
    word: Word
    reasons: tuple[str, ...]


def verdict(comparison: Comparison) -> Verdict:
    """The word and why. The rules ask in this order: are there enough prompts, are they still answers, who judged."""
    if comparison.prompts < MIN_PROMPTS:
        return Verdict("cannot tell", (f"{comparison.prompts} held-out prompts are fewer than {MIN_PROMPTS}.",))
    before, after = share(comparison.stage2_unusable), share(comparison.stage3_unusable)
    told = (f"Unusable answers: {before:.0%} before, {after:.0%} after.",)
    if after - before > MAX_UNUSABLE_RISE and _more_broken_than_chance(comparison):
        return Verdict("worse", (*told, "That is more than chance explains."))
    if not comparison.differences:
        return Verdict("cannot tell", (*told, "No judge scored the answers."))
    found, scored = by_scores(comparison.differences)
    if found == "better" and after - before > MAX_UNUSABLE_RISE:
        limit = f"{MAX_UNUSABLE_RISE:.0%}"
        return Verdict(
            "cannot tell",
            (*told, scored, f"The judge's gain does not count while unusable answers rise by over {limit}."),
        )
    return Verdict(found, (*told, scored))


def by_scores(differences: Sequence[float]) -> tuple[Word, str]:
    """By the judge: more wins than chance gives (sign test) and a mean gain whose interval leaves 0 out (bootstrap)."""
    wins, ties, losses = outcomes(differences)
    p = sign_test(wins, losses)
    low, high = bootstrap_mean(differences)
    told = (
        f"Judge: {wins} better, {ties} equal, {losses} worse (sign test p = {p:.2g}); "
        f"mean change {mean(differences):+.3f}, 95 % interval {low:+.3f} to {high:+.3f}."
    )
    if p < SIGNIFICANCE and low > 0:
        return "better", told
    if p < SIGNIFICANCE and high < 0:
        return "worse", told
    return "no different", told


def outcomes(differences: Sequence[float]) -> tuple[int, int, int]:
    """Wins, ties and losses of Stage 3."""
    wins = sum(difference > 0 for difference in differences)
    losses = sum(difference < 0 for difference in differences)
    return wins, len(differences) - wins - losses, losses


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test; ties say nothing. 1.0 where there are no wins and no losses."""
    n = wins + losses
    tail: int = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979), the same for the same values. (nan, nan) of nothing."""
    if not values:
        return math.nan, math.nan
    draw = random.Random(seed)
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAP_SAMPLES))
    return means[int(0.025 * BOOTSTRAP_SAMPLES)], means[int(0.975 * BOOTSTRAP_SAMPLES) - 1]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _more_broken_than_chance(comparison: Comparison) -> bool:
    """McNemar's exact test on the prompts where only one of the two answers is usable."""
    both = list(zip(comparison.stage2_unusable, comparison.stage3_unusable, strict=True))
    newly = sum(after and not before for before, after in both)
    mended = sum(before and not after for before, after in both)
    return newly > mended and sign_test(newly, mended) < SIGNIFICANCE
