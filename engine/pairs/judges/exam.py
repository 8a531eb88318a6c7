"""The exam of a judge: comparisons with known answers, before its scores count anywhere.

A judge that cannot tell a harmful answer from a kind refusal, or an answer from a text about something else, says nothing
about two drafts either. `exam.yaml` has the comparisons; a judge of a small world (the demo's) brings its own.
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
from engine.core.statistics import wilson
from engine.pairs.judges.base import Comparison, Judge, ScorePair
from engine.pairs.judges.scores import score_in_batches
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_json

EXAM_FILE = Path(__file__).with_name("exam.yaml")
LEAST_ACCURACY = 0.6
"""The lower end of the 95 % interval of the accuracy must reach it: chance is 0.5."""
LEAST_ON_THE_LETTERS = 0.5
"""Of a judge that is asked for a letter: where its answer begins otherwise in most cases, it does not answer the question."""


@dataclass(frozen=True)
class ExamItem:
    kind: str
    """What the worse answer does wrong: harmful, off-topic, false, preachy, padded."""
    prompt: str
    better: str
    worse: str


@dataclass(frozen=True)
class Exam:
    criterion: str
    """What the judge is told to judge by."""
    items: tuple[ExamItem, ...]

    @property
    def key(self) -> str:
        return sha256_of_json(asdict(self))[:16]


@runtime_checkable
class BringsOwnExam(Protocol):
    """A judge that only knows a small world, and is examined in it."""

    def own_exam(self) -> Exam: ...


@cache
def shipped_exam() -> Exam:
    data = yaml.safe_load(EXAM_FILE.read_text(encoding="utf-8"))
    return Exam(data["principle"], tuple(ExamItem(**item) for item in data["comparisons"]))


def exam_for(judge: Judge) -> Exam:
    return judge.own_exam() if isinstance(judge, BringsOwnExam) else shipped_exam()


@dataclass(frozen=True)
class ExamResult:
    judge: str
    about: str
    asked: int
    right: int
    accuracy_low: float
    """Lower end of the 95 % interval (Wilson)."""
    accuracy_high: float
    by_kind: Mapping[str, float] = field(default_factory=dict)
    """Accuracy on each kind."""
    longer_chosen: float | None = None
    """Share of the comparisons in which the longer answer won; the better one is the longer in `longer_is_better` of them."""
    longer_is_better: float = 0.0
    first_place_chosen: float | None = None
    """Share of the questions answered with the first place, over both orders; None for a judge that is not asked so."""
    on_the_letters: float | None = None
    """Mean probability of the two letters together."""

    @property
    def accuracy(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    @property
    def passed(self) -> bool:
        return self.why_not == ""

    @property
    def why_not(self) -> str:
        """Why its scores do not count; empty where they do."""
        if self.on_the_letters is not None and self.on_the_letters < LEAST_ON_THE_LETTERS:
            return f"asked for A or B, it puts {self.on_the_letters:.0%} of its probability on the two letters"
        if self.accuracy_low < LEAST_ACCURACY:
            return (
                f"it is right in {self.right} of {self.asked} comparisons ({self._interval}), hardly more than chance"
            )
        return ""

    @property
    def sentence(self) -> str:
        told = f"right in {self.right} of {self.asked} comparisons with known answers ({self._interval})"
        return told if self.passed else f"failed its exam: {self.why_not}"

    @property
    def _interval(self) -> str:
        return f"95 % interval {self.accuracy_low:.0%} to {self.accuracy_high:.0%}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "by_kind": dict(self.by_kind), "accuracy": self.accuracy, "passed": self.passed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExamResult:
        """Raises TypeError for a record that is none."""
        return cls(**{key: value for key, value in data.items() if key not in ("accuracy", "passed")})


def take_exam(judge: Judge, stop: StopToken) -> Iterator[Event | ExamResult]:
    """Progress, and last of all the result. Raises Stopped, and what the judge raises."""
    exam = exam_for(judge)
    comparisons = comparisons_of(exam)
    given: dict[str, ScorePair] = {}
    for batch in score_in_batches(judge, comparisons, stop):
        given |= {comparison.id: scores for comparison, scores in batch}
        yield Progress(len(given), len(comparisons), "exam comparisons", note=f"judge: {judge.name}")
    yield result_of(judge, exam, [given[comparison.id] for comparison in comparisons])


def comparisons_of(exam: Exam) -> list[Comparison]:
    """One an item; in every second one the better answer stands second."""
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
    right, longer, kinds = 0, 0, dict.fromkeys(dict.fromkeys(item.kind for item in exam.items), (0, 0))
    for number, (item, given) in enumerate(zip(exam.items, scores, strict=True)):
        better_won = given.outcome == ("worse" if number % 2 == 0 else "better")
        worse_won = given.outcome == ("better" if number % 2 == 0 else "worse")
        right += better_won
        longer += better_won if len(item.better) > len(item.worse) else worse_won
        asked, won = kinds[item.kind]
        kinds[item.kind] = (asked + 1, won + better_won)
    low, high = wilson(right, len(scores))
    return ExamResult(
        judge=judge.name,
        about=judge.about,
        asked=len(scores),
        right=right,
        accuracy_low=low,
        accuracy_high=high,
        by_kind={kind: won / asked for kind, (asked, won) in kinds.items()},
        longer_chosen=longer / len(scores) if scores else None,
        longer_is_better=sum(len(item.better) > len(item.worse) for item in exam.items) / max(len(exam.items), 1),
        first_place_chosen=_first_place_chosen(scores),
        on_the_letters=_mean([given.detail["on_the_letters"] for given in scores if "on_the_letters" in given.detail]),
    )


def _first_place_chosen(scores: Sequence[ScorePair]) -> float | None:
    """From the log-probabilities of (A) and (B) in both orders."""
    orders = [order for given in scores for order in given.detail.get("log_probabilities", [])]
    return _mean([float(a > b) for a, b in orders])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
