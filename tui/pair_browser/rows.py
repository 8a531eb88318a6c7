"""The part of a pair that the list keeps in memory: enough to draw, filter and sort it. The record itself stays on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.pairs.data.edits import Decision
from engine.pairs.data.record import OK
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine
from tui.formatting import number
from tui.runs.tail import Line

PROMPT_KEPT = 240
"""Characters of the prompt to keep for drawing."""
SEARCHED = 400
"""Characters of the prompt and of each answer that a filter searches."""
DAMAGED = "damaged"

PairState = Literal["usable", "out", "accepted", "rejected", "swapped", "edited"]
"""The state of a pair in a word: the human decision, else the detectors' finding."""


@dataclass(slots=True)
class PairRow:
    """One line of `pairs.jsonl`, and what is known about it."""

    line: Line
    id: str
    prompt: str
    searched: str
    """The text that a filter searches, case-folded."""
    principles: tuple[str, ...]
    draft: int
    """Length in characters."""
    revision: int
    """Length in characters."""
    gain: float | None = None
    """How much better the judge scores the revision than the draft; None without scores."""
    score: float | None = None
    """The revision's score."""
    usable: bool = True
    reasons: tuple[str, ...] = ()
    """The detectors' reasons against the pair; until they have checked it, the record's own reason."""
    checked: bool = False
    """Whether the detectors have checked it."""
    decision: Decision | None = None
    sampled: bool = False
    """Whether it is in the sample that people decide about if no judge passed its exam."""
    scored_by_file: bool = False
    """Whether the scores are in the record itself."""

    @property
    def state(self) -> PairState:
        decision = self.decision
        if decision is not None and decision.accepted is not None:
            return "accepted" if decision.accepted else "rejected"
        if decision is not None and decision.flipped:
            return "swapped"
        if decision is not None and decision.edited:
            return "edited"
        return "usable" if self.usable else "out"

    @property
    def decided(self) -> bool:
        """Whether a person decided about it; a note alone is not a decision."""
        return self.state not in ("usable", "out")

    @property
    def flagged(self) -> bool:
        """Whether there is a reason against the pair and no decision yet."""
        return not self.decided and (bool(self.reasons) or (self.gain is not None and self.gain <= 0))


def pair_row(line: Line) -> PairRow:
    """The row of one line of `pairs.jsonl`, whoever wrote it: any key may be missing or of another type."""
    record = line.record
    place = Line(line.number, line.offset, line.length, {})
    if isinstance(record, BadLine):
        problem = visible_line(record.reason, PROMPT_KEPT)
        return PairRow(place, "", problem, DAMAGED, (), 0, 0, usable=False, reasons=(DAMAGED,), checked=True)
    texts = [text_of(record, key) for key in ("prompt", "base_response", "revised_response")]
    principles = record.get("made_by") or record.get("principle_ids")
    names = tuple(visible_line(str(one), 40) for one in principles) if isinstance(principles, (list, tuple)) else ()
    status = visible_line(str(record.get("status") or OK), 24)
    score, gain = scores_of(record)
    return PairRow(
        place,
        str(record.get("id") or ""),
        visible_line(texts[0][: 2 * PROMPT_KEPT], PROMPT_KEPT),
        " ".join(text[:SEARCHED] for text in texts).casefold(),
        names,
        len(texts[1]),
        len(texts[2]),
        gain,
        score,
        status == OK,
        () if status == OK else (status,),
        scored_by_file=score is not None,
    )


def text_of(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return "" if value is None else str(value)


def scores_of(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(the revision's score, its gain over the draft's); None if not in the record."""
    if record.get("base_score") is None or record.get("revised_score") is None:
        return None, None
    score = number(record["revised_score"])
    gain = score - number(record["base_score"])
    return (score, gain) if gain == gain else (None, None)
