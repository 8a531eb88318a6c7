"""The pairs of a run for the browser: rows, findings of the detectors and the judge, human decisions, and the resulting
gate. The file is read while it grows, and checked in batches, so that the screen never waits.

`read` and `judge` may run in a thread; `take` and `take_findings` apply their results in the screen's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from engine.core import layout
from engine.pairs.assessment.assess import Assessment, assess_pair
from engine.pairs.assessment.figure_names import BETTER_BY_PEOPLE
from engine.pairs.assessment.review import Review
from engine.pairs.data.edits import Action, Decision, Edits, apply_decision, read_edits, write_edit
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import pair_of
from engine.pairs.judges.base import ScorePair
from engine.pairs.judges.scores import ScoreCache, comparison_of, key_of, score_of_row
from engine.pairs.relevance.cache import KnownMeasures, MeasuredReply, measured_reply, with_measures
from engine.pairs.relevance.measure import ReplyMeasures
from engine.run.folder import Run
from engine.run.reports import PairsReport
from engine.storage.documents import read_json_or_none
from engine.storage.jsonl import BadLine
from tui.pair_browser.rows import PairRow, pair_row
from tui.runs.tail import JsonlTail, Line, read_line

JUDGED_AT_ONCE = 250
"""Pairs: a tenth of a second of work."""

_NO_SCORES = ScorePair(None, None)


@dataclass(frozen=True)
class StoreUpdate:
    """The result of reading the files once."""

    rows: list[PairRow] = field(default_factory=list)
    was_replaced: bool = False
    scores: ScoreCache = field(default_factory=dict)
    judge: str | None = None
    """The judge of the newest of `scores`."""
    edits: Edits | None = None
    measured: list[MeasuredReply] = field(default_factory=list)
    asks_people: bool = False
    decided: int = 0
    """The store's count when `edits` were read."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.was_replaced or self.scores or self.measured or self.edits is not None)


@dataclass(frozen=True)
class AssessedPair:
    """The findings about one row, and their inputs."""

    index: int
    decision: Decision | None
    found: Assessment | None
    """None if the line is not a pair."""
    key: tuple[str, str] | None
    """The key of a judge's scores of exactly these texts."""
    pair: Pair | None
    why: str = ""


def asks_people(run: Run) -> bool:
    """Whether stage quality's report asks people to decide about a sample."""
    report = read_json_or_none(run / layout.PAIRS_REPORT, PairsReport)
    return report is not None and any(figure.get("name") == BETTER_BY_PEOPLE for figure in report.gate.figures)


class PairStore:
    """All pairs of one run."""

    def __init__(self, run: Run, min_gain: float | None = None) -> None:
        """min_gain   `--min-gain`: applies to the scores in `scores.jsonl`, which only a judge that passed its exam writes"""
        self.run = run
        self.asks_people = False
        """Whether no judge passed its exam, so that stage quality asks people to decide about a sample."""
        self._min_gain = min_gain
        self.rows: list[PairRow] = []
        self.review = Review()
        self._tail = JsonlTail(run / layout.PAIRS_JSONL)
        self._scores_tail = JsonlTail(run / layout.SCORES_JSONL)
        self._relevance_tail = JsonlTail(run / layout.RELEVANCE_JSONL)
        self._edits_seen: tuple[int, int] | None = None
        self._decided = 0
        """How many decisions were made here: what was read before the newest one is out of date."""
        self._edits = Edits({})
        self._indices: dict[str, list[int]] = {}
        """Rows by pair id."""
        self._keys: dict[int, tuple[str, str]] = {}
        self._rows_of_key: dict[tuple[str, str], list[int]] = {}
        self._known: ScoreCache = {}
        self._judge: str | None = None
        self._measures: dict[str, ReplyMeasures] = {}
        self._unjudged: set[int] = set()
        self._done: list[str] = []
        """Pairs in the order of the decisions made here, for undo."""

    # -- measures: in a thread -----------------------------------------------------------------------------------------

    def read(self) -> StoreUpdate:
        """New lines in the files. Raises OSError."""
        decided = self._decided
        piece = self._tail.read()
        scored = self._scores_tail.read()
        scores: ScoreCache = {}
        judge = None
        for line in scored.lines:
            given = score_of_row(line.record)
            if given is not None:
                if given.judge != judge:
                    scores, judge = {}, given.judge
                scores[given.key] = given.scores
        replies = [measured_reply(line.record) for line in self._relevance_tail.read().lines]
        return StoreUpdate(
            [pair_row(line) for line in piece.lines],
            piece.was_replaced,
            scores,
            judge,
            self._new_edits(),
            [reply for reply in replies if reply is not None],
            asks_people(self.run),
            decided,
        )

    def _new_edits(self) -> Edits | None:
        path = self.run / layout.EDITS_JSONL
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        seen = (stat.st_size, stat.st_mtime_ns)
        if seen == self._edits_seen:
            return None
        self._edits_seen = seen
        return read_edits(path)

    def take(self, news: StoreUpdate) -> None:
        """Apply the result of `read`."""
        self.asks_people = news.asks_people
        if news.was_replaced:
            self._forget()
        first = len(self.rows)
        self.rows.extend(news.rows)
        for index, row in enumerate(news.rows, start=first):
            self._indices.setdefault(row.id, []).append(index)
            row.decision = self._edits.history.decision(row.id) if row.id else None
            if row.judged:  # it is no record at all
                self.review.counts.bad_lines += 1
            else:
                self._unjudged.add(index)
        if news.edits is not None and news.decided == self._decided:
            self._take_edits(news.edits)
        elif news.edits is not None:
            self._edits_seen = None  # read them again
        if news.scores:
            self._take_scores(news.scores, news.judge)
        for reply in news.measured:
            self._measures[reply.key] = reply.measures
            self._unjudged.update(self._indices.get(reply.id, ()))

    def _forget(self) -> None:
        bad_edits, self.rows, self.review = self.review.counts.bad_edits, [], Review()
        self.review.counts.bad_edits = bad_edits
        self._indices, self._keys, self._rows_of_key, self._unjudged, self._done = {}, {}, {}, set(), []

    def _take_edits(self, edits: Edits) -> None:
        before, self._edits = self._edits, edits
        self.review.counts.bad_edits = len(edits.damaged)
        for pair_id in {*before, *edits}:
            decision = edits.decisions.get(pair_id)
            for index in self._indices.get(pair_id, ()):
                if self.rows[index].decision != decision:
                    self.rows[index].decision = decision
                    self._unjudged.add(index)

    def _take_scores(self, scores: ScoreCache, judge: str | None) -> None:
        """The newest judge's scores count, and only for the texts that it saw."""
        if judge != self._judge:
            self._known, self._judge = {}, judge
            changed: Iterable[int] = tuple(self._keys)
        else:
            changed = [index for key in scores for index in self._rows_of_key.get(key, ())]
        self._known.update(scores)
        for index in changed:
            self._score(index, self._known.get(self._keys[index], _NO_SCORES))

    def _score(self, index: int, scores: ScorePair) -> None:
        row = self.rows[index]
        row.score = scores.second
        row.gain = None if scores.first is None or scores.second is None else scores.second - scores.first
        found = self.review.assessment(row.line.number)
        if found is not None:
            gain = -row.gain if row.gain is not None and found.flipped else row.gain
            self._put(index, replace(found, gain=gain, min_gain=self._min_gain))

    # -- judging: in a thread -----------------------------------------------------------------------------------------

    @property
    def unjudged(self) -> int:
        return len(self._unjudged)

    def next_to_judge(self, wanted: Sequence[int] = ()) -> list[tuple[int, Line, Decision | None]]:
        """Rows that the detectors have not checked yet, `wanted` first; pass them to `judge`."""
        first = [index for index in wanted if index in self._unjudged]
        chosen = [*first, *islice((index for index in self._unjudged if index not in first), JUDGED_AT_ONCE)]
        return [(index, self.rows[index].line, self.rows[index].decision) for index in chosen]

    def judge(self, batch: Sequence[tuple[int, Line, Decision | None]]) -> list[AssessedPair]:
        """Run the detectors. Raises OSError."""
        judge, known, measures = self._judge, self._known, self._measures
        return [self._judged(index, line, decision, judge, known, measures) for index, line, decision in batch]

    def _judged(
        self,
        index: int,
        line: Line,
        decision: Decision | None,
        judge: str | None,
        known: ScoreCache,
        measures: KnownMeasures,
    ) -> AssessedPair:
        made = self.pair(line)
        if isinstance(made, BadLine):
            return AssessedPair(index, decision, None, None, None, made.reason)
        made = with_measures(made, measures)
        pair = with_measures(apply_decision(made, decision), measures)
        key = key_of(comparison_of(pair))
        if judge is not None:
            given = known.get(key, _NO_SCORES)
            pair = replace(pair, base_score=given.first, revised_score=given.second)
        least = None if judge is None else self._min_gain
        return AssessedPair(index, decision, assess_pair(pair, decision, made=made, min_gain=least), key, pair)

    def take_findings(self, judged: Iterable[AssessedPair]) -> None:
        """Apply the result of `judge`; rows whose decision changed meanwhile are checked again."""
        for one in judged:
            if one.index >= len(self.rows) or self.rows[one.index].decision != one.decision:
                continue
            row = self.rows[one.index]
            self._unjudged.discard(one.index)
            row.judged = True
            if one.found is None or one.key is None or one.pair is None:
                row.usable, row.reasons = False, (one.why,)
                self.review.counts.bad_lines += 1
                continue
            self._file_under(one.index, one.key)
            row.draft, row.revision = len(one.pair.base_response), len(one.pair.revised_response)
            first, second = one.pair.base_score, one.pair.revised_score
            row.score = second
            row.gain = None if first is None or second is None else second - first
            self._put(one.index, one.found)

    def _file_under(self, index: int, key: tuple[str, str]) -> None:
        before = self._keys.get(index)
        if before != key:
            if before is not None:
                self._rows_of_key[before].remove(index)
            self._keys[index] = key
            self._rows_of_key.setdefault(key, []).append(index)

    def _put(self, index: int, found: Assessment) -> None:
        for number in self.review.put(self.rows[index].line.number, found):
            changed = self.rows[index] if number == self.rows[index].line.number else self._row_of_line(number)
            changed.usable, changed.reasons = self.review.usable(number), self.review.reasons(number)

    def _row_of_line(self, number: int) -> PairRow:
        """Rows are in line order; blank lines have none."""
        low, high = 0, len(self.rows)
        while low < high:
            middle = (low + high) // 2
            if self.rows[middle].line.number < number:
                low = middle + 1
            else:
                high = middle
        return self.rows[low]

    # -- one pair -----------------------------------------------------------------------------------------------------

    def record(self, line: Line) -> dict[str, Any]:
        """The record of a row, read again from disk. Raises OSError, ValueError."""
        return read_line(self.run / layout.PAIRS_JSONL, line)

    def pair(self, line: Line) -> Pair | BadLine:
        try:
            return pair_of(line.number, self.record(line))
        except ValueError as error:
            return BadLine(line.number, str(error))

    def decide(self, index: int, action: Action, text: str | None = None, field: str | None = None) -> None:
        """Append a decision to `edits.jsonl`, synced, and update the gate. Raises DiskError, and ValueError with a sentence
        for an invalid decision.
        """
        row = self.rows[index]
        if not row.id:
            raise ValueError("This line has no id: a decision about it could not be kept.")
        edit = write_edit(self.run / layout.EDITS_JSONL, row.id, action, text, field=field)
        if action != "undo":
            self._done.append(row.id)
        self._decided += 1
        decision = self._edits.history.add(edit)
        if decision is None:
            self._edits.decisions.pop(row.id, None)
        else:
            self._edits.decisions[row.id] = decision
        for same in self._indices[row.id]:
            self.rows[same].decision = decision
            self._unjudged.add(same)
        self.take_findings(self.judge([(same, self.rows[same].line, decision) for same in self._indices[row.id]]))

    def undo(self, index: int | None) -> int | None:
        """Undo the last decision made here or, without one, the last about row `index`. Returns its row; None if there was
        nothing to undo.
        """
        while self._done:
            pair_id = self._done.pop()
            if self._indices.get(pair_id) and self._edits.history.decision(pair_id) is not None:
                self.decide(self._indices[pair_id][0], "undo")
                return self._indices[pair_id][0]
        if index is None or self.rows[index].decision is None:
            return None
        self.decide(index, "undo")
        return index

    def mark_sample(self) -> None:
        """Mark the rows of the sample among those checked so far."""
        lines = self.review.in_sample()
        for row in self.rows:
            row.sampled = row.line.number in lines

    def reasons(self) -> Iterator[tuple[str, int]]:
        """Why rows are left out, most common first."""
        return iter(self.review.counts.reasons.most_common())
