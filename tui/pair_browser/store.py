"""The pairs of a run for the browser: rows, the detectors' findings, the judge's scores, human decisions, and the resulting
gate. The file is read while it grows, and checked in batches, so that the screen never waits.

`read` and `check` may run in a thread; `apply` and `apply_assessments` apply their results in the screen's thread.
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

CHECKED_AT_ONCE = 250
"""Pairs: a tenth of a second of work."""

_NO_SCORES = ScorePair(None, None)


@dataclass(frozen=True)
class StoreUpdate:
    """The result of reading the files once."""

    rows: list[PairRow] = field(default_factory=list)
    was_replaced: bool = False
    scores: ScoreCache = field(default_factory=dict)
    judge: str | None = None
    """The judge of the newest scores."""
    edits: Edits | None = None
    measured: list[MeasuredReply] = field(default_factory=list)
    asks_people: bool = False
    decided: int = 0
    """How many decisions the store had made when `edits` were read."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.was_replaced or self.scores or self.measured or self.edits is not None)


@dataclass(frozen=True)
class AssessedPair:
    """The assessment of one row, and its inputs."""

    index: int
    decision: Decision | None
    assessment: Assessment | None
    """None if the line is not a pair."""
    key: tuple[str, str] | None
    """The key of a judge's scores for exactly these texts."""
    pair: Pair | None
    problem: str = ""
    """Why the line is not a pair."""


def asks_people(run: Run) -> bool:
    """Whether the report of stage quality asks people to decide about a sample."""
    report = read_json_or_none(run / layout.PAIRS_REPORT, PairsReport)
    return report is not None and any(figure.get("name") == BETTER_BY_PEOPLE for figure in report.gate.figures)


class PairStore:
    """All pairs of one run."""

    def __init__(self, run: Run, min_gain: float | None = None) -> None:
        """min_gain   `--min-gain`, for the scores in `scores.jsonl`, which only a judge that passed its exam writes"""
        self.run = run
        self.asks_people = False
        """Whether stage quality asks people to decide about a sample, because no judge passed its exam."""
        self._min_gain = min_gain
        self.rows: list[PairRow] = []
        self.review = Review()
        self._tail = JsonlTail(run / layout.PAIRS_JSONL)
        self._scores_tail = JsonlTail(run / layout.SCORES_JSONL)
        self._relevance_tail = JsonlTail(run / layout.RELEVANCE_JSONL)
        self._edits_seen: tuple[int, int] | None = None
        self._decided = 0
        """The number of decisions made here: edits that were read before the newest one are out of date."""
        self._edits = Edits({})
        self._indices: dict[str, list[int]] = {}
        """Rows by pair id."""
        self._keys: dict[int, tuple[str, str]] = {}
        self._rows_of_key: dict[tuple[str, str], list[int]] = {}
        self._scores: ScoreCache = {}
        self._judge: str | None = None
        self._measures: dict[str, ReplyMeasures] = {}
        self._unchecked: set[int] = set()
        self._done: list[str] = []
        """Ids of the pairs in the order of the decisions made here, for undo."""

    # -- reading: in a thread -----------------------------------------------------------------------------------------

    def read(self) -> StoreUpdate:
        """Read the new lines of the files. Raises OSError."""
        decided = self._decided
        chunk = self._tail.read()
        score_chunk = self._scores_tail.read()
        scores: ScoreCache = {}
        judge = None
        for line in score_chunk.lines:
            row = score_of_row(line.record)
            if row is not None:
                if row.judge != judge:
                    scores, judge = {}, row.judge
                scores[row.key] = row.scores
        replies = [measured_reply(line.record) for line in self._relevance_tail.read().lines]
        return StoreUpdate(
            [pair_row(line) for line in chunk.lines],
            chunk.was_replaced,
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

    def apply(self, update: StoreUpdate) -> None:
        """Apply the result of `read`."""
        self.asks_people = update.asks_people
        if update.was_replaced:
            self._reset()
        first = len(self.rows)
        self.rows.extend(update.rows)
        for index, row in enumerate(update.rows, start=first):
            self._indices.setdefault(row.id, []).append(index)
            row.decision = self._edits.history.decision(row.id) if row.id else None
            if row.checked:  # the line is not a record
                self.review.counts.bad_lines += 1
            else:
                self._unchecked.add(index)
        if update.edits is not None and update.decided == self._decided:
            self._apply_edits(update.edits)
        elif update.edits is not None:
            self._edits_seen = None  # read them again
        if update.scores:
            self._apply_scores(update.scores, update.judge)
        for reply in update.measured:
            self._measures[reply.key] = reply.measures
            self._unchecked.update(self._indices.get(reply.id, ()))

    def _reset(self) -> None:
        bad_edits, self.rows, self.review = self.review.counts.bad_edits, [], Review()
        self.review.counts.bad_edits = bad_edits
        self._indices, self._keys, self._rows_of_key, self._unchecked, self._done = {}, {}, {}, set(), []

    def _apply_edits(self, edits: Edits) -> None:
        before, self._edits = self._edits, edits
        self.review.counts.bad_edits = len(edits.damaged)
        for pair_id in {*before, *edits}:
            decision = edits.decisions.get(pair_id)
            for index in self._indices.get(pair_id, ()):
                if self.rows[index].decision != decision:
                    self.rows[index].decision = decision
                    self._unchecked.add(index)

    def _apply_scores(self, scores: ScoreCache, judge: str | None) -> None:
        """Only the newest judge's scores count, and only for the texts that it scored."""
        if judge != self._judge:
            self._scores, self._judge = {}, judge
            changed: Iterable[int] = tuple(self._keys)
        else:
            changed = [index for key in scores for index in self._rows_of_key.get(key, ())]
        self._scores.update(scores)
        for index in changed:
            self._set_scores(index, self._scores.get(self._keys[index], _NO_SCORES))

    def _set_scores(self, index: int, scores: ScorePair) -> None:
        row = self.rows[index]
        row.score = scores.second
        row.gain = None if scores.first is None or scores.second is None else scores.second - scores.first
        assessment = self.review.assessment(row.line.number)
        if assessment is not None:
            gain = -row.gain if row.gain is not None and assessment.flipped else row.gain
            self._set_assessment(index, replace(assessment, gain=gain, min_gain=self._min_gain))

    # -- checking: in a thread ----------------------------------------------------------------------------------------

    @property
    def unchecked(self) -> int:
        return len(self._unchecked)

    def next_to_check(self, visible: Sequence[int] = ()) -> list[tuple[int, Line, Decision | None]]:
        """Rows that the detectors have not checked yet, the visible ones first; pass them to `check`."""
        first = [index for index in visible if index in self._unchecked]
        chosen = [*first, *islice((index for index in self._unchecked if index not in first), CHECKED_AT_ONCE)]
        return [(index, self.rows[index].line, self.rows[index].decision) for index in chosen]

    def check(self, batch: Sequence[tuple[int, Line, Decision | None]]) -> list[AssessedPair]:
        """Run the detectors. Raises OSError."""
        judge, scores, measures = self._judge, self._scores, self._measures
        return [self._check_line(index, line, decision, judge, scores, measures) for index, line, decision in batch]

    def _check_line(
        self,
        index: int,
        line: Line,
        decision: Decision | None,
        judge: str | None,
        scores: ScoreCache,
        measures: KnownMeasures,
    ) -> AssessedPair:
        made = self.pair(line)
        if isinstance(made, BadLine):
            return AssessedPair(index, decision, None, None, None, made.reason)
        made = with_measures(made, measures)
        pair = with_measures(apply_decision(made, decision), measures)
        key = key_of(comparison_of(pair))
        if judge is not None:
            own_scores = scores.get(key, _NO_SCORES)
            pair = replace(pair, base_score=own_scores.first, revised_score=own_scores.second)
        min_gain = None if judge is None else self._min_gain
        return AssessedPair(index, decision, assess_pair(pair, decision, made=made, min_gain=min_gain), key, pair)

    def apply_assessments(self, assessed: Iterable[AssessedPair]) -> None:
        """Apply the result of `check`; rows whose decision changed in the meantime are checked again."""
        for one in assessed:
            if one.index >= len(self.rows) or self.rows[one.index].decision != one.decision:
                continue
            row = self.rows[one.index]
            self._unchecked.discard(one.index)
            row.checked = True
            if one.assessment is None or one.key is None or one.pair is None:
                row.usable, row.reasons = False, (one.problem,)
                self.review.counts.bad_lines += 1
                continue
            self._index_key(one.index, one.key)
            row.draft, row.revision = len(one.pair.base_response), len(one.pair.revised_response)
            first, second = one.pair.base_score, one.pair.revised_score
            row.score = second
            row.gain = None if first is None or second is None else second - first
            self._set_assessment(one.index, one.assessment)

    def _index_key(self, index: int, key: tuple[str, str]) -> None:
        old_key = self._keys.get(index)
        if old_key != key:
            if old_key is not None:
                self._rows_of_key[old_key].remove(index)
            self._keys[index] = key
            self._rows_of_key.setdefault(key, []).append(index)

    def _set_assessment(self, index: int, assessment: Assessment) -> None:
        for number in self.review.put(self.rows[index].line.number, assessment):
            changed = self.rows[index] if number == self.rows[index].line.number else self._row_of_line(number)
            changed.usable, changed.reasons = self.review.usable(number), self.review.reasons(number)

    def _row_of_line(self, number: int) -> PairRow:
        """The row of a line, by bisection: rows are in line order, and blank lines have no row."""
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
        """The record of a row, read from disk again. Raises OSError and ValueError."""
        return read_line(self.run / layout.PAIRS_JSONL, line)

    def pair(self, line: Line) -> Pair | BadLine:
        try:
            return pair_of(line.number, self.record(line))
        except ValueError as error:
            return BadLine(line.number, str(error))

    def decide(self, index: int, action: Action, text: str | None = None, field: str | None = None) -> None:
        """Append a decision to `edits.jsonl`, synced, and update the gate. Raises DiskError, and ValueError, with a message
        for the user, if the decision is invalid.
        """
        row = self.rows[index]
        if not row.id:
            raise ValueError("This line has no id, so a decision about it cannot be saved.")
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
            self._unchecked.add(same)
        self.apply_assessments(self.check([(same, self.rows[same].line, decision) for same in self._indices[row.id]]))

    def undo(self, index: int | None) -> int | None:
        """Undo the last decision made here or, if there is none, the last one about row `index`. Returns the index of the
        row; None if there was nothing to undo.
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
        """Mark the rows that are in the sample of those checked so far."""
        lines = self.review.in_sample()
        for row in self.rows:
            row.sampled = row.line.number in lines

    def reasons(self) -> Iterator[tuple[str, int]]:
        """The reasons why rows are left out, most common first, with counts."""
        return iter(self.review.counts.reasons.most_common())
