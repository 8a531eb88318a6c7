"""The sample that people decide about if no judge passes its exam. It has the same pairs whatever is decided about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nsmallest

from engine.core.statistics import wilson

SAMPLE_SIZE = 30
"""The number of pairs. If at least 21 of them are better, the lower end of the interval is above one half."""


@dataclass
class Sample:
    """People's decisions about usable pairs, before edits, by the hash of the pair's id: better, not better, or none yet."""

    _decisions: dict[int, bool | None] = field(default_factory=dict)

    def count(self, order: int, better: bool | None, by: int) -> None:
        """Add (`by` = 1) or remove (`by` = -1) one pair."""
        if by > 0:
            self._decisions[order] = better
        else:
            self._decisions.pop(order, None)

    @property
    def orders(self) -> list[int]:
        """The sample: the first pairs by the hash of their id."""
        return nsmallest(SAMPLE_SIZE, self._decisions)

    @property
    def decisions(self) -> list[bool | None]:
        """The decisions about the sample's pairs."""
        return [self._decisions[order] for order in self.orders]

    @property
    def better_low(self) -> float | None:
        """The lower end of the 95 % interval of the share of better pairs; None until the full sample is decided."""
        decisions = self.decisions
        return None if None in decisions or not decisions else wilson(sum(map(bool, decisions)), len(decisions))[0]

    @property
    def sentence(self) -> str:
        decisions = self.decisions
        decided, better = sum(each is not None for each in decisions), sum(map(bool, decisions))
        if decided < len(decisions) or not decisions:
            return f"undecided: {decided} of the sample's {len(decisions)} pairs have a decision"
        low, high = wilson(better, len(decisions))
        return (
            f"{better} of {len(decisions)} in the sample (95 % interval {low:.0%} to {high:.0%}; the lower end counts)"
        )
