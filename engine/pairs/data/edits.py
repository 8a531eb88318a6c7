"""What people decided about pairs: `pairs/edits.jsonl`, append-only. The training set is a pure function of both files.

An edit is `{"id", "action", "time"}`, `time` in seconds since 1970; `edit` and `note` have a `text`, and `edit` may name the
`field` that it replaces. `undo` takes back the last edit of its pair that still stands, a note too; if none stands it
does nothing. Edits of different pairs don't touch each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from engine.core import layout
from engine.pairs.data.record import OK, Pair
from engine.storage.jsonl import BadLine, JsonlAppender, last_unended_line, parsed_line, read_jsonl

Action = Literal["accept", "reject", "flip", "edit", "note", "undo"]
ACTIONS: tuple[Action, ...] = get_args(Action)

EditedField = Literal["revised_response", "base_response"]
EDITED_FIELDS: tuple[EditedField, ...] = get_args(EditedField)

LONGEST_TEXT = 1 << 20
"""Characters of an edit's text or a note: a line of the file stays far below what a reader takes."""


@dataclass(frozen=True)
class Decision:
    """All that stands about one pair after its edits."""

    accepted: bool | None = None
    """True: use it whatever the detectors say; False: leave it out; None: the detectors decide."""
    flipped: bool = False
    revised_response: str | None = None
    """New text of the revision."""
    base_response: str | None = None
    """New text of the draft."""
    note: str = ""

    @property
    def edited(self) -> bool:
        return self.revised_response is not None or self.base_response is not None


@dataclass(frozen=True)
class Edits(Mapping[str, Decision]):
    """Decisions by pair id, and what of the file could not be read."""

    decisions: dict[str, Decision]
    damaged: tuple[BadLine, ...] = ()
    """Lines that are no edit: somebody's decision may be lost in them, so whoever reads this says so."""
    torn: bool = False
    """An unfinished last line: it was never acknowledged, and is no damage."""
    history: History = field(default_factory=lambda: History(), compare=False)
    """The edits themselves: a decision more is added to them."""

    def __getitem__(self, pair_id: str) -> Decision:
        return self.decisions[pair_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)


def edits_beside(pairs: Path) -> Path:
    """Where the decisions about a file of pairs are: `edits.jsonl` beside a run's `pairs.jsonl`, or if there is one and no
    other; else `FILE.edits.jsonl`.
    """
    own, of_a_run = pairs.with_name(f"{pairs.name}.edits.jsonl"), pairs.with_name(Path(layout.EDITS_JSONL).name)
    if own.exists():
        return own
    return of_a_run if of_a_run.exists() or pairs.name == Path(layout.PAIRS_JSONL).name else own


# -- writing and reading ----------------------------------------------------------------------------------------------


def write_edit(
    path: Path, pair_id: str, action: str, text: str | None = None, *, field: str | None = None
) -> dict[str, Any]:
    """Append one edit, synced, with the time; returns it.

    text    of `edit` and `note`
    field   what `edit` replaces, `revised_response` without it

    Raises ValueError, with the reason as a sentence, for what is no edit; DiskError.
    """
    edit: dict[str, Any] = {"id": pair_id, "action": action}
    if text is not None:
        edit["text"] = text
    if field is not None:
        edit["field"] = field
    edit["time"] = round(time.time(), 3)
    reason = why_no_edit(edit)
    if reason:
        raise ValueError(f"This cannot be kept as a decision: {reason}.")
    with JsonlAppender(path) as edits:
        edits.append(edit)
    return edit


def read_edits(path: Path) -> Edits:
    """The decisions in a file, damaged lines apart; none if there is no file."""
    if not path.exists():
        return Edits({})
    edits: list[dict[str, Any]] = []
    damaged: list[BadLine] = []
    for number, row in read_jsonl(path):
        reason = row.reason if isinstance(row, BadLine) else why_no_edit(row)
        if isinstance(row, BadLine) or reason:
            damaged.append(BadLine(number, reason))
        else:
            edits.append(row)
    # A person may have written the file by hand and ended it without a newline.
    tail = last_unended_line(path)
    last = parsed_line(0, tail) if tail.strip() else None
    whole = isinstance(last, dict) and not why_no_edit(last)
    if isinstance(last, dict) and whole:
        edits.append(last)
    history = History()
    for edit in edits:
        history.add(edit)
    return Edits(history.decisions(), tuple(damaged), torn=last is not None and not whole, history=history)


def edit_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The edits of a file as they stand there, in order; damaged lines are left out."""
    if path.exists():
        yield from (row for _, row in read_jsonl(path) if not isinstance(row, BadLine) and not why_no_edit(row))


def why_no_edit(row: Mapping[str, Any]) -> str:
    """Why a row is no edit; empty if it is one."""
    pair_id, action, text = row.get("id"), row.get("action"), row.get("text")
    if not isinstance(pair_id, str) or not pair_id.strip():
        return "it names no pair"
    if action not in ACTIONS:
        return f"{ascii(action)[:40]} is no action; there are {', '.join(ACTIONS)}"
    if action in ("edit", "note") and not isinstance(text, str):
        return f"{action} needs a text"
    if action == "edit" and not str(text).strip():
        return "the new text is empty; reject the pair to leave it out"
    if action not in ("edit", "note") and text is not None:
        return f"{action} takes no text"
    edited = row.get("field")
    if edited is not None and (action != "edit" or edited not in EDITED_FIELDS):
        return f"only edit replaces a field, and of {', '.join(EDITED_FIELDS)}"
    if "time" in row and not _is_time(row["time"]):
        return "its time is no number of seconds"
    return _why_no_text(pair_id) or _why_no_text(text or "")


def _why_no_text(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        return f"the text is longer than {LONGEST_TEXT:,} characters"
    if "\0" in text:
        return "there is a NUL character in it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "there is half a character (a lone surrogate) in it"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


# -- what stands ------------------------------------------------------------------------------------------------------


def fold_edits(edits: Iterable[Mapping[str, Any]]) -> dict[str, Decision]:
    """Decisions by pair id, of edits in the order in which they were made."""
    history = History()
    for edit in edits:
        history.add(edit)
    return history.decisions()


class History:
    """Edits in the order in which they were made, and what stands of them."""

    def __init__(self) -> None:
        self._of_pair: dict[str, list[Mapping[str, Any]]] = {}

    def add(self, edit: Mapping[str, Any]) -> Decision | None:
        """What stands about the edit's pair after it; None if nothing does."""
        pair_id = str(edit["id"])
        of_pair = self._of_pair.setdefault(pair_id, [])
        if edit["action"] != "undo":
            of_pair.append(edit)
        elif of_pair:
            of_pair.pop()
        return self.decision(pair_id)

    def decision(self, pair_id: str) -> Decision | None:
        of_pair = self._of_pair.get(pair_id)
        return _decision(of_pair) if of_pair else None

    def decisions(self) -> dict[str, Decision]:
        return {pair_id: _decision(of_pair) for pair_id, of_pair in self._of_pair.items() if of_pair}


def apply_decision(pair: Pair, decision: Decision | None) -> Pair:
    """The pair as people left it; whether it is used is the caller's to ask of `decision.accepted`.

    A new text has no score: the old one was another text's. Nor is it cut off, nor what became of the generation.
    """
    if decision is None:
        return pair
    if decision.revised_response is not None:
        pair = replace(
            pair,
            revised_response=decision.revised_response,
            revised_score=None,
            status=OK,
            finish={**pair.finish, "revision": "stopped"},
        )
    if decision.base_response is not None:
        pair = replace(
            pair,
            base_response=decision.base_response,
            base_score=None,
            finish={**pair.finish, "draft": "stopped"},
        )
    if decision.flipped:
        pair = replace(pair, chosen="base" if pair.chosen == "revised" else "revised")
    return pair


def _decision(edits: list[Mapping[str, Any]]) -> Decision:
    decision = Decision()
    for edit in edits:
        match edit["action"]:
            case "accept":
                decision = replace(decision, accepted=True)
            case "reject":
                decision = replace(decision, accepted=False)
            case "flip":
                decision = replace(decision, flipped=not decision.flipped)
            case "edit" if edit.get("field") == "base_response":
                decision = replace(decision, base_response=edit["text"])
            case "edit":
                decision = replace(decision, revised_response=edit["text"])
            case "note":
                decision = replace(decision, note=edit["text"])
    return decision
