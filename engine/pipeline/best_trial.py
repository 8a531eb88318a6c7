"""Which trial of a sweep is the best, by one rule that sweep, screens and reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

RULE = (
    "Among the trials that finished and are not worse than Stage 2: the highest mean change of the judge's score or, "
    "without a judge, the highest held-out accuracy; then the highest margin; then the earlier trial."
)


class FinishedTrial(Protocol):
    """The outcome of a trial."""

    @property
    def outcome(self) -> str: ...

    @property
    def verdict(self) -> str: ...

    @property
    def figures(self) -> Mapping[str, Any]: ...


Trial = TypeVar("Trial", bound=FinishedTrial)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The best trial by RULE; None if no trial may be picked."""
    eligible = [each for each in trials if each.outcome == "done" and each.verdict not in ("worse", "")]

    def rank(each: Trial) -> tuple[float, ...]:
        return tuple(_value(each.figures.get(key)) for key in ("score_change", "reward_accuracy", "margin"))

    return max(eligible, key=rank, default=None)


def _value(figure: Any) -> float:
    return float(figure) if isinstance(figure, (int, float)) else float("-inf")
