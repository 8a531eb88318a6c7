"""Stage 7 with `--pairs`: pairs from elsewhere become the run's records. Nothing is generated.

A record is identified by what made it, an imported one by its texts. Importing the same file again writes the same
`pairs.jsonl`, byte for byte, so no later stage is done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.core import layout
from engine.core.events import Event, Message, Progress, StageStale
from engine.core.wording import plural
from engine.pairs.data.edits import edit_lines, edits_path_of
from engine.pairs.data.record import OK, Pair, PairRecord
from engine.pairs.formats.folders import hash_of_files
from engine.pairs.formats.imported import read_imported_pairs
from engine.pairs.formats.reading import BadRows
from engine.run.results import PairsResult
from engine.stages.base import Context, StageEnd, StageRun
from engine.storage.files import sha256_of_file, sha256_of_json, sync_folder, write_atomically
from engine.storage.jsonl import dumps

ROWS_BETWEEN_UPDATES = 1000
IMPORTED = "imported"


def import_pairs(context: Context, source: Path) -> StageRun:
    """Import the pairs, then the decisions stored beside the source. Raises as `read_imported_pairs`, and DiskError."""
    origin, bad, target = hash_of_files(source), BadRows("pair"), context.run / layout.PAIRS_JSONL
    yield Message("info", f"The pairs come from {source.name}; nothing is generated.")
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    total = usable = 0
    try:
        with part.open("w", encoding="ascii") as file:
            for pair in read_imported_pairs(context.config, bad):
                file.write(dumps(record_of(pair).as_dict()) + "\n")
                total, usable = total + 1, usable + (pair.status == OK)
                if total % ROWS_BETWEEN_UPDATES == 0:
                    yield Progress(total, 0, "pairs")
                    context.stop.raise_if_requested()
        yield from bad.messages(source.name)
        yield from _replace_set(context, part, target)
    finally:
        part.unlink(missing_ok=True)
    yield from _import_decisions(context, source)
    imported = {"name": source.name, "sha256": origin, "rows": bad.rows, "bad_rows": bad.count}
    return StageEnd(
        f"{plural(total, 'pair')} imported from {source.name}"
        + (f", {bad.count:,} rows left out" if bad.count else ""),
        PairsResult(pairs_sha256=sha256_of_file(target), records=total, ok=usable, imported=imported),
    )


def record_of(pair: Pair) -> PairRecord:
    """The record of an imported pair: no attempt was made here."""
    made_with = sha256_of_json([IMPORTED, pair.messages, pair.base_response, pair.revised_response])[:32]
    return PairRecord(
        id=pair.id,
        prompt=pair.prompt,
        messages=pair.messages,
        base_response=pair.base_response,
        revised_response=pair.revised_response,
        critic_notes=pair.critic_notes,
        principle_ids=pair.principle_ids,
        attempts=0,
        status=pair.status,
        base_score=pair.base_score,
        revised_score=pair.revised_score,
        chosen=pair.chosen,
        made_by=pair.made_by,
        finish=pair.finish,
        made_with=made_with,
        method=pair.method,
    )


def _replace_set(context: Context, part: Path, target: Path) -> Iterator[Event]:
    """Move the new set into place. A different set that is there is set aside, with the decisions about it."""
    if target.exists() and sha256_of_file(target) != sha256_of_file(part):
        why = "different pairs were imported"
        folder = context.run.set_aside(layout.PAIRS_JSONL, layout.EDITS_JSONL, why=why)
        yield StageStale("pairs", why)
        yield Message("info", f"The previous set is now in {folder}.")
    part.replace(target)
    sync_folder(target.parent)


def _import_decisions(context: Context, source: Path) -> Iterator[Event]:
    """Put the decisions stored beside the source before those made in this run."""
    path = context.run / layout.EDITS_JSONL
    own = list(edit_lines(path))
    known = {dumps(edit) for edit in own}
    new = (
        [edit for edit in edit_lines(edits_path_of(source).resolve()) if dumps(edit) not in known]
        if source.is_file()
        else []
    )
    if not new:
        return
    write_atomically(path, "".join(dumps(edit) + "\n" for edit in [*new, *own]).encode("ascii"))
    yield Message("info", f"Imported {len(new):,} decisions stored beside {source.name}.")
