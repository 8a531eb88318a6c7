"""People's decisions about pairs: `pairs/edits.jsonl`, append-only. The training set is a pure function of this and
`pairs.jsonl`.

An edit is `{"id", "action", "time"}`, `time` in seconds since 1970; `edit` and `note` have a `text`, and `edit` may have the
`field` that it replaces. `undo` reverts the last edit of its pair that is still in effect, notes included; with none left it
does nothing. Edits of different pairs are independent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from engine.core import layout
from engine.core.reading import open_file
from engine.pairs.data.edits_lock import sole_writer
from engine.pairs.data.record import OK, Pair
from engine.storage.jsonl import BadLine, JsonlAppender, parse_line, read_jsonl, unterminated_last_line

Action = Literal["accept", "reject", "flip", "edit", "note", "undo"]
ACTIONS: tuple[Action, ...] = get_args(Action)

EditedField = Literal["revised_response", "base_response"]
EDITED_FIELDS: tuple[EditedField, ...] = get_args(EditedField)

MAX_EDIT_CHARACTERS = 1 << 20
"""Limit for an edit's text or a note, so that a line stays far below the reader's limit."""


@dataclass(frozen=True)
class Decision:
    """The state of one pair after its edits."""

    accepted: bool | None = None
    """True uses the pair whatever the detectors find, False leaves it out, None lets the detectors decide."""
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
    """Decisions by pair id, and the lines that could not be read."""

    decisions: dict[str, Decision]
    damaged: tuple[BadLine, ...] = ()
    """Lines that are not edits. They may be decisions, so callers report them."""
    torn: bool = False
    """The last line is unfinished. It was never acknowledged, so it does not count as damage."""
    history: History = field(default_factory=lambda: History(), compare=False)
    """The edits themselves, to which new ones are added."""

    def __getitem__(self, pair_id: str) -> Decision:
        return self.decisions[pair_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)


def edits_path_of(pairs: Path) -> Path:
    """Where the decisions about a pairs file are: `FILE.edits.jsonl` if it exists; `edits.jsonl` in the same folder if that
    exists or the file is a run's `pairs.jsonl`; else `FILE.edits.jsonl`.
    """
    own, of_a_run = pairs.parent / f"{pairs.name}.edits.jsonl", pairs.parent / Path(layout.EDITS_JSONL).name
    if own.exists():
        return own
    return of_a_run if of_a_run.exists() or pairs.name == Path(layout.PAIRS_JSONL).name else own


# -- writing and reading ----------------------------------------------------------------------------------------------


def write_edit(
    path: Path, pair_id: str, action: str, text: str | None = None, *, field: str | None = None
) -> dict[str, Any]:
    """Append one edit with the time, sync it, and return it.

    text    of `edit` and `note`
    field   what `edit` replaces; `revised_response` by default

    Other processes may write to the file at the same time.
    Raises ValueError with the reason as a sentence if the edit is invalid, and DiskError.
    """
    edit: dict[str, Any] = {"id": pair_id, "action": action}
    if text is not None:
        edit["text"] = text
    if field is not None:
        edit["field"] = field
    edit["time"] = round(time.time(), 3)
    reason = edit_problem(edit)
    if reason:
        raise ValueError(f"This decision cannot be saved: {reason}.")
    with sole_writer(path), JsonlAppender(path) as edits:
        edits.append(edit)
    return edit


def read_settled_edits(path: Path) -> tuple[Edits, int]:
    """A consistent snapshot of all decisions, and the size of the file in bytes at that moment."""
    if not path.exists():
        return Edits({}), 0
    with sole_writer(path):
        return read_edits(path), _size(path)


def count_edits_after(path: Path, offset: int) -> int:
    """How many edits were appended to a file after byte `offset`. Raises OSError."""
    if _size(path) <= offset:
        return 0
    with open_file(path) as file:
        file.seek(offset)
        return sum(line.endswith(b"\n") for line in file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_edits(path: Path) -> Edits:
    """The decisions in a file, with damaged lines listed separately; empty if the file does not exist."""
    if not path.exists():
        return Edits({})
    edits: list[dict[str, Any]] = []
    damaged: list[BadLine] = []
    for number, row in read_jsonl(path):
        reason = row.reason if isinstance(row, BadLine) else edit_problem(row)
        if isinstance(row, BadLine) or reason:
            damaged.append(BadLine(number, reason))
        else:
            edits.append(row)
    # The file may have been written by hand, without a final newline.
    tail = unterminated_last_line(path)
    last = parse_line(0, tail) if tail.strip() else None
    complete = isinstance(last, dict) and not edit_problem(last)
    if isinstance(last, dict) and complete:
        edits.append(last)
    history = History()
    for edit in edits:
        history.add(edit)
    return Edits(history.decisions(), tuple(damaged), torn=last is not None and not complete, history=history)


def edit_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The edits of a file in order; damaged lines are skipped."""
    if path.exists():
        yield from (row for _, row in read_jsonl(path) if not isinstance(row, BadLine) and not edit_problem(row))


def edit_problem(row: Mapping[str, Any]) -> str:
    """Why a row is not a valid edit; an empty string if it is valid."""
    pair_id, action, text = row.get("id"), row.get("action"), row.get("text")
    if not isinstance(pair_id, str) or not pair_id.strip():
        return "it has no pair id"
    if action not in ACTIONS:
        return f"{ascii(action)[:40]} is not an action ({', '.join(ACTIONS)})"
    if action in ("edit", "note") and not isinstance(text, str):
        return f"{action} needs a text"
    if action == "edit" and not str(text).strip():
        return "the new text is empty; reject the pair to leave it out"
    if action not in ("edit", "note") and text is not None:
        return f"{action} takes no text"
    edited = row.get("field")
    if edited is not None and (action != "edit" or edited not in EDITED_FIELDS):
        return f"only edit takes a field, one of {', '.join(EDITED_FIELDS)}"
    if "time" in row and not _is_time(row["time"]):
        return "its time is not a number of seconds"
    return _text_problem(pair_id) or _text_problem(text or "")


def _text_problem(text: str) -> str:
    if len(text) > MAX_EDIT_CHARACTERS:
        return f"the text is longer than {MAX_EDIT_CHARACTERS:,} characters"
    if "\0" in text:
        return "it contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it contains a lone surrogate"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


# -- decisions --------------------------------------------------------------------------------------------------------


class History:
    """Edits in the order they were made, and the decisions that follow from them."""

    def __init__(self) -> None:
        self._of_pair: dict[str, list[Mapping[str, Any]]] = {}

    def add(self, edit: Mapping[str, Any]) -> Decision | None:
        """Add an edit. Return the decision about its pair, or None if no edit is left."""
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
    """The pair with its edits applied. Whether it is used depends on `decision.accepted`, which the caller checks.

    An edited text loses the score, the failure status and the "cut off" mark of the generated one.
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
