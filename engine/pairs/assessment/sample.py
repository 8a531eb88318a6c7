"""The sample that people decide about where no judge can judge: the same pairs at every start, whatever is decided of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nsmallest

from engine.core.statistics import wilson

SAMPLE = 30
"""Pairs. Where 21 of them or more are better, the lower end of the interval lies above one half."""


@dataclass
class Sample:
    """What people said of the usable pairs as they were made, each by the hash of its id: better, not better, or nothing yet."""

    _said: dict[int, bool | None] = field(default_factory=dict)

    def count(self, order: int, better: bool | None, by: int) -> None:
        """One pair more, or (-1) one less."""
        if by > 0:
            self._said[order] = better
        else:
            self._said.pop(order, None)

    @property
    def orders(self) -> list[int]:
        """The sample: the first pairs by the hash of their id."""
        return nsmallest(SAMPLE, self._said)

    @property
    def said(self) -> list[bool | None]:
        """Of the pairs of the sample."""
        return [self._said[order] for order in self.orders]

    @property
    def better_low(self) -> float | None:
        """Lower end of the 95 % interval of the share that is better; None before all of the sample is decided."""
        said = self.said
        return None if None in said or not said else wilson(sum(map(bool, said)), len(said))[0]

    @property
    def sentence(self) -> str:
        said = self.said
        decided, better = len([each for each in said if each is not None]), sum(map(bool, said))
        if decided < len(said) or not said:
            return f"{decided} of the {len(said)} pairs of the sample are decided"
        low, high = wilson(better, len(said))
        return f"{better} of {len(said)} in the sample, 95 % interval {low:.0%} to {high:.0%}, of which the lower end counts"
