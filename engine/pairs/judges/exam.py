"""A judge's exam: comparisons with known answers, taken before its scores count anywhere.

A judge that cannot distinguish a harmful answer from a kind refusal, or an answer from an unrelated text, cannot compare two
drafts either. The comparisons are in `exam.yaml`; the demo's judge, which knows only a small world, brings its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from engine.core.events import Event, Progress
from engine.core.statistics import fraction, wilson
from engine.pairs.judges.base import Comparison, Judge, ScorePair
from engine.pairs.judges.scores import score_in_batches
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_json

EXAM_FILE = Path(__file__).with_name("exam.yaml")
MIN_ACCURACY = 0.6
"""What the lower end of the accuracy's 95 % interval must reach; chance is 0.5."""
MIN_LETTER_PROBABILITY = 0.5
"""With less total probability on A and B, a judge that is asked for a letter is not answering the question."""


@dataclass(frozen=True)
class ExamItem:
    kind: str
    """What is wrong with the worse answer: harmful, off-topic, false, preachy, padded."""
    prompt: str
    better: str
    worse: str


@dataclass(frozen=True)
class Exam:
    name: str
    """Where its comparisons come from, in a few words."""
    criterion: str
    """The criterion in the question to the judge."""
    items: tuple[ExamItem, ...]

    @property
    def key(self) -> str:
        return sha256_of_json(asdict(self))[:16]


@runtime_checkable
class BringsOwnExam(Protocol):
    """A judge that knows only a small world and is examined in it."""

    def own_exam(self) -> Exam: ...


@cache
def shipped_exam() -> Exam:
    data = yaml.safe_load(EXAM_FILE.read_text(encoding="utf-8"))
    return Exam("the exam of the package", data["principle"], tuple(ExamItem(**item) for item in data["comparisons"]))


def exam_for(judge: Judge) -> Exam:
    return judge.own_exam() if isinstance(judge, BringsOwnExam) else shipped_exam()


@dataclass(frozen=True)
class ExamResult:
    judge: str
    about: str
    exam: str
    """The exam's name."""
    asked: int
    right: int
    accuracy_low: float
    """Lower end of the 95 % interval (Wilson)."""
    accuracy_high: float
    by_kind: Mapping[str, float] = field(default_factory=dict)
    """Accuracy on each kind."""
    longer_chosen: float | None = None
    """The share of decided comparisons that the longer answer won; None if none was decided."""
    longer_is_better: float = 0.0
    """The share of comparisons whose better answer is the longer one: `longer_chosen` of a judge without length bias."""
    first_place_chosen: float | None = None
    """The share of questions answered with the first position, over both orders; None for judges without positions."""
    on_the_letters: float | None = None
    """The mean total probability of the two letters; for a server without log-probabilities, the share of its answers that were
    one of them. None for judges that are not asked for a letter."""

    @property
    def accuracy(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    @property
    def passed(self) -> bool:
        return self.why_not == ""

    @property
    def why_not(self) -> str:
        """Why the judge failed; empty if it passed."""
        if self.on_the_letters is not None and self.on_the_letters < MIN_LETTER_PROBABILITY:
            return f"asked for A or B, it puts only {self.on_the_letters:.0%} of the probability on the two letters"
        if self.accuracy_low < MIN_ACCURACY:
            return (
                f"it got {self.right} of {self.asked} comparisons right ({self._interval}), little better than chance"
            )
        return ""

    @property
    def sentence(self) -> str:
        score = f"{self.right} of {self.asked} comparisons with known answers right ({self._interval})"
        return score if self.passed else f"failed its exam: {self.why_not}"

    @property
    def biases(self) -> str:
        """Length and position bias in one line; empty if unknown."""
        biases = []
        if self.longer_chosen is not None:
            biases.append(
                f"the longer answer {self.longer_chosen:.0%} of the time (unbiased: {self.longer_is_better:.0%})"
            )
        if self.first_place_chosen is not None:
            biases.append(f"the first position {self.first_place_chosen:.0%} of the time (unbiased: 50%)")
        if self.on_the_letters is not None:
            biases.append(f"{self.on_the_letters:.0%} of its probability on the letters")
        return ", ".join(biases)

    @property
    def _interval(self) -> str:
        return f"95 % interval {self.accuracy_low:.0%} to {self.accuracy_high:.0%}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "by_kind": dict(self.by_kind), "accuracy": self.accuracy, "passed": self.passed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExamResult:
        """Raises TypeError for a malformed record."""
        return cls(**{key: value for key, value in data.items() if key not in ("accuracy", "passed")})


def take_exam(judge: Judge, stop: StopToken) -> Iterator[Event | ExamResult]:
    """Yield progress, and finally the result. Raises Stopped, and what the judge raises."""
    exam = exam_for(judge)
    comparisons = comparisons_of(exam)
    scores: dict[str, ScorePair] = {}
    for batch in score_in_batches(judge, comparisons, stop):
        scores |= {comparison.id: pair for comparison, pair in batch}
        yield Progress(len(scores), len(comparisons), "exam comparisons", note=f"judge: {judge.name}")
    yield result_of(judge, exam, [scores[comparison.id] for comparison in comparisons])


def comparisons_of(exam: Exam) -> list[Comparison]:
    """One comparison per item; in every other one the better answer comes second."""
    return [
        Comparison(
            id=f"exam-{number}",
            conversation=[{"role": "user", "content": item.prompt}],
            first=item.better if number % 2 == 0 else item.worse,
            second=item.worse if number % 2 == 0 else item.better,
            criterion=exam.criterion,
        )
        for number, item in enumerate(exam.items)
    ]


def result_of(judge: Judge, exam: Exam, scores: Sequence[ScorePair]) -> ExamResult:
    """Grade the `scores` of `comparisons_of(exam)`, in order. A comparison without a score counts as wrong."""
    graded = [
        _GradedItem(item, *_won(number, pair))
        for number, (item, pair) in enumerate(zip(exam.items, scores, strict=True))
    ]
    right = sum(each.better_won for each in graded)
    low, high = wilson(right, len(graded))
    return ExamResult(
        judge=judge.name,
        about=judge.about,
        exam=exam.name,
        asked=len(graded),
        right=right,
        accuracy_low=low,
        accuracy_high=high,
        by_kind=_by_kind(graded),
        longer_chosen=_mean([float(each.longer_won) for each in graded if each.better_won or each.worse_won]),
        longer_is_better=_mean([float(each.better_is_longer) for each in graded]) or 0.0,
        first_place_chosen=_mean([value for pair in scores for value in _first_position_wins(pair)]),
        on_the_letters=_mean([value for pair in scores for value in _on_the_letters(pair)]),
    )


@dataclass(frozen=True)
class _GradedItem:
    item: ExamItem
    better_won: bool
    worse_won: bool

    @property
    def better_is_longer(self) -> bool:
        return len(self.item.better) > len(self.item.worse)

    @property
    def longer_won(self) -> bool:
        return self.better_won if self.better_is_longer else self.worse_won


def _won(number: int, scores: ScorePair) -> tuple[bool, bool]:
    """(better answer won, worse answer won); both False for a tie or without a score."""
    better, worse = (
        ("worse", "better") if number % 2 == 0 else ("better", "worse")
    )  # `outcome` is about the second answer
    return scores.outcome == better, scores.outcome == worse


def _by_kind(graded: Sequence[_GradedItem]) -> dict[str, float]:
    kinds = dict.fromkeys(each.item.kind for each in graded)
    return {kind: fraction([each.better_won for each in graded if each.item.kind == kind]) for kind in kinds}


def _first_position_wins(scores: ScorePair) -> list[float]:
    """For each order, 1.0 if the first position won, else 0.0; empty if the judge was not asked for a letter."""
    if "log_probabilities" in scores.detail:
        return [float(a > b) for a, b in scores.detail["log_probabilities"]]
    return [float(letter == "A") for letter in scores.detail.get("letters", []) if letter]


def _on_the_letters(scores: ScorePair) -> list[float]:
    if "on_the_letters" in scores.detail:
        return [float(scores.detail["on_the_letters"])]
    return [float(bool(letter)) for letter in scores.detail.get("letters", [])]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
