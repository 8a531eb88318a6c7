"""Estimate the gate's figures from part of the pairs: shares with intervals, and whether the gate can still open.

The pilot looks once, at a random sample, with a 95 % interval (Wilson 1927). Stage pairs looks after every batch, so sooner or
later a 95 % interval would fall below the threshold by chance; its interval is 99.99 % (a Bonferroni correction for 500
interim looks).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.core.config import Stage3Config
from engine.core.errors import DataError
from engine.core.statistics import Z_95, wilson
from engine.pairs.assessment.figure_names import TRAINING_PAIRS, subject_of, title_of
from engine.pairs.data.record import EMPTY_DRAFT
from engine.pairs.detectors import EMPTY
from engine.security.sanitize import visible_line

Z_INTERIM = 3.890592
"""z of a two-sided 99.99 % interval."""
MIN_PROMPTS_BEFORE_LOOK = 48
"""Prompts before the first interim look of stage pairs: as many as two pilots have."""


Reasons = Sequence[tuple[str, int]]
"""(reason, number of prompts)."""
REASONS_SHOWN = 3
NO_TEXT_REASONS = (EMPTY_DRAFT, EMPTY)


@dataclass(frozen=True)
class Estimate:
    """One of the gate's shares, estimated from the first `n` prompts."""

    name: str
    """The name of the gate's figure."""
    successes: int
    n: int
    threshold: float
    bound: Literal["at least", "at most"]
    remedy: str
    z: float = Z_95
    left_out: Reasons = ()
    """Why the other prompts do not count, the most frequent reason first."""

    @property
    def title(self) -> str:
        return title_of(self.name)

    @property
    def subject(self) -> str:
        """The figure as the subject of a sentence."""
        return "the share of training pairs" if self.name == TRAINING_PAIRS else subject_of(self.name)

    @property
    def share(self) -> float | None:
        return self.successes / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.n, self.z)

    @property
    def hopeless(self) -> bool:
        """Whether the whole interval lies on the wrong side of the threshold."""
        low, high = self.interval
        return high < self.threshold if self.bound == "at least" else low > self.threshold

    @property
    def sentence(self) -> str:
        if self.share is None:
            return f"not measured (the gate needs {self.bound} {self.threshold:.0%})"
        low, high = self.interval
        measured = f"{self.successes} of {self.n}, {self.share:.0%} ({low:.0%} to {high:.0%})"
        return f"{measured}; the gate needs {self.bound} {self.threshold:.0%}"

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "name": self.name,
            "successes": self.successes,
            "n": self.n,
            "share": self.share,
            "low": low,
            "high": high,
            "threshold": self.threshold,
            "bound": self.bound,
            "hopeless": self.hopeless,
        }


def usable_estimate(usable: int, n: int, config: Stage3Config, *, left_out: Reasons = (), z: float = Z_95) -> Estimate:
    without_text = sum(count for reason, count in left_out if reason in NO_TEXT_REASONS)
    remedy = remedy_for_no_text(config) if 2 * without_text > n - usable else remedy_for_unusable(config)
    return Estimate("usable_share", usable, n, config.min_usable_share, "at least", remedy, z, left_out)


def relevant_estimate(relevant: int, n: int, config: Stage3Config) -> Estimate:
    return Estimate("relevant_share", relevant, n, config.min_relevant_share, "at least", remedy_for_unusable(config))


def improved_estimate(better: int, n: int, config: Stage3Config) -> Estimate:
    remedy = {
        "critique-revision": "use a stronger policy, --method contrast, or another --constitution",
        "contrast": "use a --constitution with an opposite for each principle, or --method critique-revision",
        "best-of-n": "raise --num-drafts",
    }[config.method]
    return Estimate("improved_share", better, n, config.min_improved_share, "at least", remedy)


def too_long_estimate(too_long: int, n: int, config: Stage3Config) -> Estimate:
    remedy = "raise --max-length, or lower --max-prompt-tokens or --max-new-tokens"
    return Estimate("too_long_share", too_long, n, config.max_too_long_share, "at most", remedy)


def remedy_for_unusable(config: Stage3Config) -> str:
    """How to make more pairs usable; suggests only what the run does not use yet."""
    other_methods = {
        "critique-revision": "--method contrast, which needs no critique",
        "contrast": "--method critique-revision",
        "best-of-n": "--method contrast",
    }
    options = [other_methods[config.method]]
    if config.server_url is None:
        options.append("a stronger policy on a server (--server-url)")
    if config.method == "critique-revision" and config.few_shot is None:
        options.append("worked examples (--few-shot)")
    return f"use {', '.join(options)}, or another --constitution"


def remedy_for_no_text(config: Stage3Config) -> str:
    """What to check if most answers have no text, which neither another method nor another constitution changes."""
    if config.server_url is not None:
        return (
            f"ask {visible_line(str(config.server_model), 80)} one question by hand; a model that returns only reasoning, or has "
            "no chat template, sends empty answers"
        )
    return "the model ends its turn at once: try --dtype float32, and check its --chat-template"


def hopeless_error(hopeless: Sequence[Estimate], what: str, why: str, pairs_path: str) -> DataError:
    """The error that ends generation early: the figures that are out of reach, and how to fix each."""
    figures = "; ".join(f"{estimate.subject} is {estimate.sentence}" for estimate in hopeless)
    remedy = " ".join(f"{estimate.title.capitalize()}: {estimate.remedy}." for estimate in hopeless)
    shown = [reason for estimate in hopeless for reason in estimate.left_out[:REASONS_SHOWN]]
    reasons = ", ".join(f"{visible_line(reason, 120)} ({count})" for reason, count in dict.fromkeys(shown))
    return DataError(
        f"{what}: {figures}.{f' Left out: {reasons}.' if reasons else ''}",
        why,
        f'{remedy} The pairs so far are in {pairs_path}. To continue anyway: --accept-quality "your reason".',
    )


def require_reachable(estimates: Iterable[Estimate], config: Stage3Config, **wording: str) -> str:
    """Raise DataError if the gate can no longer open. With `--accept-quality`, return a warning instead."""
    hopeless = [estimate for estimate in estimates if estimate.hopeless]
    if not hopeless:
        return ""
    error = hopeless_error(hopeless, **wording)
    if config.accept_quality is None:
        raise error
    return f"{error.what} Continuing anyway (--accept-quality): {config.accept_quality}"


@dataclass(frozen=True)
class Outlook:
    """Whether the set can still pass the gate while stage pairs is running."""

    config: Stage3Config
    prompts: int | None
    """Prompts of the run, including those that are too long; None with --target-pairs, which draws as many as it needs."""

    def estimates(self, usable: int, attempted: int, too_long: int, left_out: Reasons = ()) -> list[Estimate]:
        """Estimates from the prompts attempted so far, of which `usable` have a usable pair.

        The gate also counts prompts that are too long. Their number is known, so the threshold for the others is higher.
        """
        if attempted < MIN_PROMPTS_BEFORE_LOOK or (self.prompts is not None and attempted + too_long >= self.prompts):
            return []  # too few to tell, or all of them, which the gate itself decides
        estimate = usable_estimate(usable, attempted, self.config, left_out=left_out, z=Z_INTERIM)
        if self.prompts is None:
            return [estimate]
        fitting = self.prompts - too_long
        share = replace(estimate, threshold=self.config.min_usable_share * self.prompts / fitting)
        pairs = replace(
            estimate, name=TRAINING_PAIRS, threshold=self.config.min_pairs / fitting, remedy="raise --num-examples"
        )
        return [share, pairs] if self.config.min_pairs <= self.prompts else [share]
