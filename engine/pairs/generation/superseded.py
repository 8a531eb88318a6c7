"""Reuse the records and decisions of this run's earlier sets in `superseded/` that are still valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.pairs.data.edits import edit_lines, read_edits
from engine.pairs.data.edits_lock import sole_writer
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt
from engine.run.folder import Run
from engine.run.superseded import is_reusable, superseded_folders
from engine.storage.files import write_atomically, write_json
from engine.storage.jsonl import BadLine, dumps, read_jsonl

SETS = (layout.PAIRS_JSONL, layout.PILOT_PAIRS)
CARRIED = "decisions-carried.json"
"""Written beside superseded edits once they are carried over; lists the pairs whose decisions were not."""


def reusable_records(
    run: Run, wanted: Mapping[str, Prompt], identity: RecordIdentity, *, excluding: str = layout.PAIRS_JSONL
) -> Iterator[dict[str, Any]]:
    """The valid records of other sets, one per prompt: first the pilot's (or, for the pilot, the run's), then those of earlier
    sets, newest first.

    wanted      prompts without a record, by id
    excluding   the set that the records are for
    """
    missing = dict(wanted)
    reusable = [folder for folder in superseded_folders(run.folder) if is_reusable(folder)]
    files = [run / name for name in SETS if name != excluding]
    files += [folder / name for folder in reusable for name in SETS]
    for path in files:
        if not missing:
            return
        if not path.is_file():
            continue
        for _, record in read_jsonl(path):
            prompt = None if isinstance(record, BadLine) else missing.get(str(record.get("id")))
            if prompt is not None and identity.can_reuse(prompt, record):  # type: ignore[arg-type]
                del missing[prompt.id]
                yield record  # type: ignore[misc]


@dataclass(frozen=True)
class CarriedDecisions:
    """How many decisions about the previous set were carried over, and which ones were not."""

    carried: int
    lost: tuple[str, ...]
    """Ids of pairs whose texts changed, or that are no longer in the set."""


def carry_decisions(run: Run) -> CarriedDecisions | None:
    """Copy the decisions about pairs with unchanged texts to the new set; None if there is nothing to carry over.

    The superseded file does not change, so decisions that were not carried over can still be read there. Decisions about the
    new set come after the carried ones. Raises DiskError.
    """
    folder = next((folder for folder in _earlier_sets(run) if (folder / layout.EDITS_JSONL).is_file()), None)
    if folder is None or (folder / CARRIED).exists():
        return None
    decided = read_edits(folder / layout.EDITS_JSONL).decisions
    same = _same_texts(folder / layout.PAIRS_JSONL, run / layout.PAIRS_JSONL, set(decided))
    carried = [edit for edit in edit_lines(folder / layout.EDITS_JSONL) if edit["id"] in same]
    if carried:
        _prepend(run / layout.EDITS_JSONL, carried)
    result = CarriedDecisions(len(same), tuple(sorted(set(decided) - same)))
    write_json(folder / CARRIED, {"carried": result.carried, "not_carried": list(result.lost)})
    return result


def _prepend(path: Path, carried: Sequence[dict[str, Any]]) -> None:
    """Write the carried edits before those that people have made in the meantime."""
    with sole_writer(path):
        newer = list(edit_lines(path))
        lines = [edit for edit in carried if edit not in newer]
        text = "".join(dumps(edit) + "\n" for edit in [*lines, *newer])
        write_atomically(path, text.encode("ascii"))


def _same_texts(old: Path, new: Path, ids: set[str]) -> set[str]:
    """Ids of pairs with the same draft and revision in both files."""
    before = _texts(old, ids)
    return {pair_id for pair_id, texts in _texts(new, ids).items() if before.get(pair_id) == texts}


def _texts(path: Path, ids: set[str]) -> dict[str, tuple[Any, Any]]:
    if not path.is_file():
        return {}
    return {
        record["id"]: (record.get("base_response"), record.get("revised_response"))
        for _, record in read_jsonl(path)
        if not isinstance(record, BadLine) and record.get("id") in ids
    }


def _earlier_sets(run: Run) -> list[Path]:
    """The superseded folders that hold pairs, newest first."""
    return [folder for folder in superseded_folders(run.folder) if (folder / layout.PAIRS_JSONL).is_file()]
