"""A judge's scores, cached in `pairs/scores.jsonl`. Nothing is scored twice while its texts stay the same.

The file is append-only and synced. A line is `{id, judge, texts, base_score, revised_score, detail}`, where `texts` is a hash
of the conversation and both replies. `pairs.jsonl` is never rewritten, so another judge or an edited revision only costs
scoring.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.errors import PreconditionError
from engine.core.events import Event, Message, Progress
from engine.core.wording import plural
from engine.machine.memory import free_memory, halve_on_oom
from engine.pairs.data.record import Pair
from engine.pairs.judges.base import SERVER_FAILED, Comparison, Judge, Outcome, ScorePair
from engine.run.stop import StopToken
from engine.storage.files import sha256_of_json
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl
from engine.storage.lazy import Mapped, take

COMPARISONS_PER_BATCH = 16
"""Judges read without generating, and each comparison has two replies or two orders, so larger batches gain little."""

ScoreCache = dict[tuple[str, str], ScorePair]
"""Keyed by (id, hash of the texts)."""


def comparison_of(pair: Pair) -> Comparison:
    principle = pair.principle_ids[-1] if pair.principle_ids else None
    return Comparison(pair.id, pair.messages, pair.base_response, pair.revised_response, principle)


def key_of(comparison: Comparison) -> tuple[str, str]:
    """(the comparison's id, a hash of everything a judge reads of it)."""
    messages = [[message["role"], message["content"]] for message in comparison.conversation]
    return comparison.id, sha256_of_json([messages, comparison.first, comparison.second])


ScoredBatch = list[tuple[Comparison, ScorePair]]
ScoreBatches = Callable[[Sequence[Comparison]], Iterator[Event | ScoredBatch]]
"""Scores comparisons batch by batch, in order. Raises Stopped between batches, and what the judge raises."""


@contextmanager
def in_this_process(load: Callable[[], Judge], stop: StopToken) -> Iterator[ScoreBatches]:
    """A judge in the memory of this process, which is freed at the end."""
    judge = [load()]
    try:
        yield lambda comparisons: score_in_batches(judge[0], comparisons, stop)
    finally:
        judge.clear()
        free_memory()


def score_pairs(
    path: Path, pairs: Sequence[Pair], name: str, load: Callable[[], AbstractContextManager[ScoreBatches]]
) -> Generator[Event, None, list[ScorePair]]:
    """The scores of the pairs by one judge, in order.

    path   `pairs/scores.jsonl`
    name   the name of the judge, known before it is loaded
    load   loads the judge while scores are missing; not called if none are

    Scores only what the file lacks, so a run that was stopped or killed continues where it was. Raises what
    `ScoreBatches` raises.
    """
    comparisons = Mapped(pairs, comparison_of)
    known, damaged = read_scores(path, name)
    if damaged:
        yield Message("warning", f"Damaged lines in {path}: {damaged}. Those pairs are scored again.")
    missing = [
        (-_length(comparison), comparison.id, number)
        for number, comparison in enumerate(comparisons)
        if key_of(comparison) not in known
    ]
    # The order of `longest_first`, without holding the texts.
    pending = take(comparisons, array("Q", (number for _, _, number in sorted(missing))))
    if pending:
        yield Message(
            "info",
            f"Scoring {plural(len(pending), 'pair')} with the judge {name}; {len(comparisons) - len(pending)} are done.",
        )
        with load() as score_batches:
            yield from _score_pending(path, pending, known, len(comparisons), name, score_batches)
    scores = [known[key_of(comparison)] for comparison in comparisons]
    if comparisons and all(pair.outcome == "not scored" for pair in scores):
        raise PreconditionError(
            f"The judge ({name}) could score none of {len(comparisons)} pairs.",
            f"Reason for the first one: {scores[0].detail.get('not scored', 'none given')}.",
            "Use another judge (--judge self, reward-model, server), or none.",
        )
    return scores


def _score_pending(
    path: Path,
    pending: Sequence[Comparison],
    known: ScoreCache,
    total: int,
    name: str,
    score_batches: ScoreBatches,
) -> Iterator[Event]:
    """Score `pending`, and add the scores to `known` and to the file."""
    started = time.monotonic()
    with JsonlAppender(path) as appender:
        if appender.torn:
            yield Message("warning", f"Moved an unfinished score ({appender.torn} bytes) to {appender.torn_path}.")
        done = 0
        for item in score_batches(pending):
            if isinstance(item, Event):
                yield item
                continue
            for number, (comparison, scores) in enumerate(item, start=1):
                # A batch is acknowledged as a whole.
                appender.append(score_row(name, comparison, scores), sync=number == len(item))
                known[key_of(comparison)] = scores
            done += len(item)
            rate = done / max(time.monotonic() - started, 1e-9)
            left = (len(pending) - done) / rate
            yield Progress(total - len(pending) + done, total, "pairs scored", rate, left, f"judge: {name}")


def score_row(judge: str, comparison: Comparison, scores: ScorePair) -> dict[str, Any]:
    """A line of the file."""
    pair_id, texts = key_of(comparison)
    return {
        "id": pair_id,
        "judge": judge,
        "texts": texts,
        "base_score": scores.first,
        "revised_score": scores.second,
        "detail": dict(scores.detail),
    }


def score_in_batches(judge: Judge, comparisons: Sequence[Comparison], stop: StopToken) -> Iterator[ScoredBatch]:
    """Yield batches of (comparison, scores). Raises Stopped between batches."""
    for batch in batches_of(comparisons):
        stop.raise_if_requested()
        yield scored_batch(judge, batch)


def batches_of(comparisons: Sequence[Comparison]) -> Sequence[Sequence[Comparison]]:
    starts = range(0, len(comparisons), COMPARISONS_PER_BATCH)
    return Mapped(starts, lambda start: comparisons[start : start + COMPARISONS_PER_BATCH])


def scored_batch(judge: Judge, batch: Sequence[Comparison]) -> ScoredBatch:
    """The scores of one batch, which is halved when memory runs out."""

    def score(rows: Sequence[int]) -> list[ScorePair]:
        return judge.score([batch[row] for row in rows])

    return list(zip(batch, halve_on_oom(score, range(len(batch)), free_memory), strict=True))


def longest_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Sort by length, to keep padding low. The longest come first, so that memory runs out at once or not at all."""
    return sorted(comparisons, key=lambda comparison: (-_length(comparison), comparison.id))


def _length(comparison: Comparison) -> int:
    texts = (*(message["content"] for message in comparison.conversation), comparison.first, comparison.second)
    return sum(map(len, texts))


@dataclass(frozen=True)
class ScoredTexts:
    """One line of `pairs/scores.jsonl`."""

    judge: str
    key: tuple[str, str]
    scores: ScorePair


def score_of_row(row: Mapping[str, Any] | BadLine) -> ScoredTexts | None:
    """The parsed line; None if it is not a score."""
    if isinstance(row, BadLine):
        return None
    try:
        return ScoredTexts(str(row["judge"]), (str(row["id"]), str(row["texts"])), scores_of(row))
    except (KeyError, TypeError, ValueError):
        return None


def scores_of(row: Mapping[str, Any]) -> ScorePair:
    """Raises KeyError, TypeError, ValueError."""
    return ScorePair(_number(row["base_score"]), _number(row["revised_score"]), dict(row.get("detail") or {}))


def read_scores(path: Path, judge: str) -> tuple[ScoreCache, int]:
    """(the newest scores of one judge, the number of damaged lines); empty if there is no file."""
    if not path.exists():
        return {}, 0
    newest: ScoreCache = {}
    damaged = 0
    for _, line in read_jsonl(path):
        row = score_of_row(line)
        damaged += row is None
        if row is not None and row.judge == judge:
            newest[row.key] = row.scores
    return {key: scores for key, scores in newest.items() if not _is_retried(scores)}, damaged


def _is_retried(scores: ScorePair) -> bool:
    return scores.detail.get("not scored") == SERVER_FAILED


@dataclass(frozen=True)
class JudgeSummary:
    """The counts of a judge's outcomes, for the report and for people."""

    judge: str
    outcomes: Mapping[Outcome, int]
    not_scored: Mapping[str, int]
    """How many comparisons were not scored, by reason."""
    on_the_letters: float | None
    """The mean total probability of the two letters; None for judges that are not asked for a letter or do not report it."""

    @classmethod
    def of(cls, judge: str, scores: Sequence[ScorePair]) -> JudgeSummary:
        on_letters = [pair.detail["on_the_letters"] for pair in scores if "on_the_letters" in pair.detail]
        return cls(
            judge,
            Counter(pair.outcome for pair in scores),
            Counter(str(pair.detail.get("not scored", "")) for pair in scores if pair.outcome == "not scored"),
            math.fsum(on_letters) / len(on_letters) if on_letters else None,
        )

    @property
    def scored(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "not scored")

    @property
    def sentence(self) -> str:
        count = {outcome: self.outcomes.get(outcome, 0) for outcome in ("better", "equal", "worse", "not scored")}
        decided = f"{self.judge}: {count['better']} better, {count['equal']} equal, {count['worse']} worse"
        return f"{decided}, {count['not scored']} not scored" if count["not scored"] else decided

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
        raise TypeError(f"a score is a {type(value).__name__}, not a number")
    return float(value)
