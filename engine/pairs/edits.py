"""What people decided about pairs: `pairs/edits.jsonl`, append-only. The training set is a pure function of both files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine.jsonl import BadLine, read_jsonl
from engine.pairs.record import Pair

Action = Literal["accept", "reject", "flip", "edit", "note", "undo"]
ACTIONS: tuple[Action, ...] = ("accept", "reject", "flip", "edit", "note", "undo")


@dataclass(frozen=True)
class Decision:
    """All that stands about one pair after its edits."""

    accepted: bool | None = None
    """True: use it whatever the detectors say; False: leave it out; None: the detectors decide."""
    flipped: bool = False
    revised_response: str | None = None
    """New text of the revision."""
    note: str = ""


def fold_edits(edits: Iterable[Mapping[str, Any]]) -> dict[str, Decision]:
    """Decisions by pair id. An edit is `{id, action, time}`, with `text` for edit and note; undo takes the last one back."""
    history: dict[str, list[Mapping[str, Any]]] = {}
    for edit in edits:
        of_pair = history.setdefault(str(edit["id"]), [])
        if edit["action"] == "undo":
            if of_pair:
                of_pair.pop()
        else:
            of_pair.append(edit)
    return {pair_id: _decision(of_pair) for pair_id, of_pair in history.items() if of_pair}


def read_edits(path: Path) -> dict[str, Decision]:
    """The decisions in a file; none where there is no file."""
    if not path.exists():
        return {}
    rows = (row for _, row in read_jsonl(path))
    return fold_edits(
        row for row in rows if not isinstance(row, BadLine) and row.get("action") in ACTIONS and "id" in row
    )


def apply_decision(pair: Pair, decision: Decision | None) -> Pair:
    """The pair as people left it; whether it is used is the caller's to ask of `decision.accepted`."""
    if decision is None:
        return pair
    if decision.revised_response is not None:
        pair = replace(pair, revised_response=decision.revised_response, finish={**pair.finish, "revision": "stopped"})
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
            case "edit":
                decision = replace(decision, revised_response=str(edit["text"]))
            case "note":
                decision = replace(decision, note=str(edit["text"]))
    return decision
