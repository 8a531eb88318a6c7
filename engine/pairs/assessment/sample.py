"""The sample that people decide about if no judge passes its exam: always the same pairs, whatever is decided about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nsmallest

from engine.core.statistics import wilson

SAMPLE = 30
"""Pairs. If at least 21 of them are better, the lower end of the interval is above one half."""


@dataclass
class Sample:
    """People's decisions about usable pairs, before edits, by the hash of the pair's id: better, not better, or none yet."""

    _said: dict[int, bool | None] = field(default_factory=dict)

    def count(self, order: int, better: bool | None, by: int) -> None:
        """Add (`by` = 1) or remove (`by` = -1) one pair."""
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
        """The decisions about the sample's pairs."""
        return [self._said[order] for order in self.orders]

    @property
    def better_low(self) -> float | None:
        """Lower end of the 95 % interval of the share of better pairs; None until the whole sample is decided."""
        said = self.said
        return None if None in said or not said else wilson(sum(map(bool, said)), len(said))[0]

    @property
    def sentence(self) -> str:
        said = self.said
        decided, better = len([each for each in said if each is not None]), sum(map(bool, said))
        if decided < len(said) or not said:
            return f"{decided} of the sample's {len(said)} pairs are decided"
        low, high = wilson(better, len(said))
        return f"{better} of {len(said)} in the sample (95 % interval {low:.0%} to {high:.0%}; the lower end counts)"
