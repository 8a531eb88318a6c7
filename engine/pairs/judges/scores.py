"""Scores of a judge, kept in `pairs/scores.jsonl`: what was scored once is not scored again while its texts stay the same.

Append-only and synced, one line `{id, judge, texts, base_score, revised_score, detail}`; `texts` is a hash of the
conversation and both replies. `pairs.jsonl` is never rewritten, so another judge, or an edited revision, costs scoring
alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.errors import PreconditionError
from engine.core.events import Event, Message, Progress
from engine.machine.memory import free_memory, in_halves
from engine.pairs.data.record import Pair
from engine.pairs.judges.base import Comparison, Judge, LoadJudge, Outcome, ScorePair, judge_name
from engine.run.context import Context
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_json
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

CASES_AT_ONCE = 16
"""A judge reads and writes nothing: of more, each with two replies or two orders, it gains little."""

ScoreCache = dict[tuple[str, str], ScorePair]
"""By (id, hash of the texts)."""


def comparison_of(pair: Pair) -> Comparison:
    principle = pair.principle_ids[-1] if pair.principle_ids else None
    return Comparison(pair.id, pair.messages, pair.base_response, pair.revised_response, principle)


def key_of(case: Comparison) -> tuple[str, str]:
    """The case's id, and a hash of all that a judge reads of it."""
    said = [[message["role"], message["content"]] for message in case.conversation]
    return case.id, sha256_of_json([said, case.first, case.second])


def score_pairs(
    context: Context, pairs: Sequence[Pair], load_judge: LoadJudge
) -> Generator[Event, None, list[ScorePair]]:
    """The scores of the pairs by the judge of `--judge`, one a pair, in their order.

    Scores what `pairs/scores.jsonl` has no score for by this judge; a run that was stopped or killed goes on where it
    was. Raises Stopped between two batches, and what the judge raises.
    """
    name = judge_name(context.config)
    if name is None:
        raise ValueError("there is no judge to score by")
    path = context.run / layout.SCORES_JSONL
    cases = [comparison_of(pair) for pair in pairs]
    known, damaged = read_scores(path, name)
    if damaged:
        yield Message("warning", f"{damaged} lines of {path} are no scores; what they scored is scored again.")
    pending = [case for case in cases if key_of(case) not in known]
    if pending:
        yield from _score_pending(context, pending, known, len(cases), load_judge)
    scores = [known[key_of(case)] for case in cases]
    if cases and all(given.outcome == "not scored" for given in scores):
        raise PreconditionError(
            f"The judge ({name}) could score none of {len(cases)} pairs.",
            f"Of the first it says: {scores[0].detail.get('not scored', 'nothing')}.",
            "Use another judge (--judge self, reward-model, server), or none.",
        )
    return scores


def _score_pending(
    context: Context, pending: list[Comparison], known: ScoreCache, total: int, load_judge: LoadJudge
) -> Iterator[Event]:
    """Adds to `known` and to the file."""
    path, name = context.run / layout.SCORES_JSONL, judge_name(context.config)
    yield Message("info", f"Scoring {len(pending)} pairs by the judge {name}; {total - len(pending)} are scored.")
    judge = load_judge(context)
    assert judge is not None  # judge_name gave it a name
    started = time.monotonic()
    with JsonlAppender(path) as appender:
        if appender.torn:
            yield Message(
                "warning", f"An unfinished score ({appender.torn} bytes) was put aside in {appender.torn_path}."
            )
        done = 0
        for batch in score_in_batches(judge, longest_first(pending), context.stop):
            for number, (case, given) in enumerate(batch, start=1):
                pair_id, texts = key_of(case)
                row = {
                    "id": pair_id,
                    "judge": name,
                    "texts": texts,
                    "base_score": given.first,
                    "revised_score": given.second,
                    "detail": dict(given.detail),
                }
                appender.append(row, sync=number == len(batch))  # a batch is acknowledged as a whole
                known[pair_id, texts] = given
            done += len(batch)
            rate = done / max(time.monotonic() - started, 1e-9)
            left = (len(pending) - done) / rate
            yield Progress(total - len(pending) + done, total, "pairs scored", rate, left, f"judge: {name}")
    del judge
    free_memory()


def score_in_batches(
    judge: Judge, cases: Sequence[Comparison], stop: StopToken
) -> Iterator[list[tuple[Comparison, ScorePair]]]:
    """Cases with their scores, batch by batch; a batch is halved if memory runs out. Raises Stopped between two."""
    for start in range(0, len(cases), CASES_AT_ONCE):
        stop.raise_if_requested()
        batch = cases[start : start + CASES_AT_ONCE]

        def score(rows: Sequence[int], batch: Sequence[Comparison] = batch) -> list[ScorePair]:
            return judge.score([batch[row] for row in rows])

        yield list(zip(batch, in_halves(score, range(len(batch)), free_memory), strict=True))


def longest_first(cases: Sequence[Comparison]) -> list[Comparison]:
    """Of like length side by side, so that little is padding; the longest first, so that memory runs out at once or not."""

    def length(case: Comparison) -> int:
        return sum(len(message["content"]) for message in case.conversation) + len(case.first) + len(case.second)

    return sorted(cases, key=lambda case: (-length(case), case.id))


@dataclass(frozen=True)
class ScoredTexts:
    """One line of `pairs/scores.jsonl`."""

    judge: str
    key: tuple[str, str]
    scores: ScorePair


def score_of_row(row: Mapping[str, Any] | BadLine) -> ScoredTexts | None:
    """What a line says; None for one that is no score."""
    if isinstance(row, BadLine):
        return None
    try:
        scores = ScorePair(_number(row["base_score"]), _number(row["revised_score"]), dict(row.get("detail") or {}))
        return ScoredTexts(str(row["judge"]), (str(row["id"]), str(row["texts"])), scores)
    except (KeyError, TypeError, ValueError):
        return None


def read_scores(path: Path, judge: str) -> tuple[ScoreCache, int]:
    """The scores of one judge, the newest of each, and the number of damaged lines; nothing if there is no file."""
    if not path.exists():
        return {}, 0
    rows = [score_of_row(row) for _, row in read_jsonl(path)]
    return {row.key: row.scores for row in rows if row is not None and row.judge == judge}, rows.count(None)


@dataclass(frozen=True)
class JudgeSummary:
    """What a judge found, counted: for the report and for people."""

    judge: str
    outcomes: Mapping[Outcome, int]
    not_scored: Mapping[str, int]
    """Why, and how often."""
    on_the_letters: float | None
    """Mean probability that the asked model gave to the two letters together; None if it was not asked, or not told."""

    @classmethod
    def of(cls, judge: str, scores: Sequence[ScorePair]) -> JudgeSummary:
        told = [given.detail["on_the_letters"] for given in scores if "on_the_letters" in given.detail]
        return cls(
            judge,
            Counter(given.outcome for given in scores),
            Counter(str(given.detail.get("not scored", "")) for given in scores if given.outcome == "not scored"),
            math.fsum(told) / len(told) if told else None,
        )

    @property
    def scored(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "not scored")

    @property
    def sentence(self) -> str:
        count = {outcome: self.outcomes.get(outcome, 0) for outcome in ("better", "equal", "worse", "not scored")}
        told = f"{self.judge}: {count['better']} better, {count['equal']} equal, {count['worse']} worse"
        return f"{told}, {count['not scored']} not scored" if count["not scored"] else told

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.judge,
            "scored": self.scored,
            **{outcome.replace(" ", "_"): self.outcomes.get(outcome, 0) for outcome in ("better", "equal", "worse")},
            "not_scored": dict(self.not_scored),
            "on_the_letters": None if self.on_the_letters is None else round(self.on_the_letters, 6),
        }


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a score is a {type(value).__name__}")
    return float(value)
