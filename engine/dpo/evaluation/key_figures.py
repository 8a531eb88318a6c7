"""The three key figures of a verdict, with their 95 % intervals: what to read first.

Which three depends on the rule that decided (`engine.dpo.evaluation.verdict`). A figure that was not measured is skipped,
and the next one takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.statistics import wilson

SHOWN = 3
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class KeyFigure:
    """One figure on a scale."""

    name: str
    value: float
    low: float
    high: float
    """`low` and `high` are the bounds of the 95 % interval."""
    mark: float
    """The value to compare with: Stage 2's, or the one that means no difference."""
    mark_name: str
    counts: str = ""
    """The counts behind the value, in words."""
    is_share: bool = True
    """Whether the scale is from 0 to 1; otherwise it is centred on the mark."""


def key_figures(rule: str, figures: Figures) -> tuple[KeyFigure, ...]:
    """The key figures for the verdict of `rule`, most important first; fewer than three if fewer were measured."""
    names = dict.fromkeys((*BY_RULE.get(rule, ()), *DEFAULT))
    candidates = (FIGURES[name](figures) for name in names)
    return tuple(figure for figure in candidates if figure is not None)[:SHOWN]


def _preferred(figures: Figures) -> KeyFigure | None:
    return _judge_preference("Judge prefers Stage 3", figures, "")


def _preferred_not_longer(figures: Figures) -> KeyFigure | None:
    return _judge_preference("… where not longer", figures, "_not_longer")


def _judge_preference(name: str, figures: Figures, suffix: str) -> KeyFigure | None:
    wins, ties, losses = (_count(figures, f"{key}{suffix}") for key in ("wins", "ties", "losses"))
    decided = wins + losses
    if not decided:
        return None
    counts = f"{wins} better, {ties} equal, {losses} worse"
    return KeyFigure(name, wins / decided, *wilson(wins, decided), 0.5, "chance", counts)


def _change(figures: Figures) -> KeyFigure | None:
    return with_interval("Mean change of the score", figures, "score_change", 0.0, "none", is_share=False)


def _margin(figures: Figures) -> KeyFigure | None:
    return with_interval("Held-out margin, nats", figures, "margin", 0.0, "none", is_share=False)


def _accuracy(figures: Figures) -> KeyFigure | None:
    counts = f"of {_count(figures, 'pairs')} held-out pairs"
    return with_interval("Held-out accuracy", figures, "reward_accuracy", 0.5, "chance", counts)


def with_interval(
    name: str, figures: Figures, key: str, mark: float, mark_name: str, counts: str = "", *, is_share: bool = True
) -> KeyFigure | None:
    """A figure that was measured with its interval, as `NAME_low` and `NAME_high`."""
    value, low, high = (_number(figures, f"{key}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return None
    return KeyFigure(name, value, low, high, mark, mark_name, counts, is_share)


def _broken(figures: Figures) -> KeyFigure | None:
    return _before_and_after("Broken answers", figures, "unusable_share", "prompts", "prompts")


def _unfit(figures: Figures) -> KeyFigure | None:
    return _before_and_after("Unfit answers", figures, "unfit_share", "prompts", "prompts")


def _refused(figures: Figures) -> KeyFigure | None:
    return _before_and_after(
        "Refused harmless prompts", figures, "harmless_refusal_share", "harmless_prompts", "harmless prompts"
    )


def _before_and_after(name: str, figures: Figures, key: str, number_key: str, what: str) -> KeyFigure | None:
    before, after = _number(figures, f"stage2_{key}"), _number(figures, f"stage3_{key}")
    n = _count(figures, number_key)
    if before is None or after is None or not n:
        return None
    counts = f"{round(before * n)} before, {round(after * n)} after, of {n} {what}"
    return KeyFigure(name, after, *wilson(round(after * n), n), before, "Stage 2", counts)


def _unchanged(figures: Figures) -> KeyFigure | None:
    share, n = _number(figures, "unchanged_share"), _count(figures, "prompts")
    if share is None or not n:
        return None
    same = round(share * n)
    return KeyFigure("Unchanged answers", share, *wilson(same, n), 1.0, "all", f"{same} of {n}")


def _number(figures: Figures, key: str) -> float | None:
    value = figures.get(key)
    is_figure = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_figure else None  # type: ignore[arg-type]


def _count(figures: Figures, key: str) -> int:
    return int(_number(figures, key) or 0)


FIGURES: dict[str, Callable[[Figures], KeyFigure | None]] = {
    "preferred": _preferred,
    "not longer": _preferred_not_longer,
    "change": _change,
    "broken": _broken,
    "unfit": _unfit,
    "refused": _refused,
    "accuracy": _accuracy,
    "margin": _margin,
    "unchanged": _unchanged,
}
DEFAULT: Sequence[str] = ("preferred", "broken", "refused", "accuracy", "margin")
BY_RULE: dict[str, Sequence[str]] = {
    "nothing trained": ("unchanged", "accuracy", "margin"),
    "same answers": ("unchanged", "accuracy", "margin"),
    "broken answers": ("broken", "preferred", "refused"),
    "more broken": ("broken", "preferred", "refused"),
    "over-refusal": ("refused", "preferred", "broken"),
    "more refusals": ("refused", "preferred", "broken"),
    "refusals alone": ("refused", "preferred", "broken"),
    "wrong way round": ("accuracy", "margin", "preferred"),
    "judge against pairs": ("accuracy", "margin", "preferred"),
    "fewer unfit answers": ("unfit", "broken", "refused"),
    "no judge": ("accuracy", "unfit", "broken", "refused"),
    "blind judge": ("accuracy", "broken", "refused"),
    "judged worse": ("preferred", "change", "accuracy"),
    "judged alike": ("preferred", "change", "accuracy"),
    "length alone": ("preferred", "not longer", "broken"),
}
"""The figures that each rule is about come first; the default ones follow."""
