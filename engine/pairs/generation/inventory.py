"""Count the records that a run already has: in its file, and in earlier sets."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core import layout
from engine.core.config import Stage3Config
from engine.pairs.data.record import OK
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt, load_prompts
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.generation.superseded import reusable_records
from engine.run.folder import Run
from engine.storage.jsonl import BadLine, read_jsonl


@dataclass(frozen=True)
class Inventory:
    kept: int
    """Valid records in `pairs.jsonl`."""
    taken_over: int
    """Valid records in earlier sets."""
    missing: int
    """A lower bound with `--target-pairs`, which depends on how many turn out usable."""
    target: int | None = None
    """The number of usable pairs wanted, if `missing` is a lower bound."""

    @property
    def in_words(self) -> str:
        parts = {"kept": self.kept, "taken over": self.taken_over, "to make": self.missing}
        told = ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
        return (
            told if self.target is None else f"{told}, and more until {self.target:,} are usable".removeprefix(", and ")
        )


def take_inventory(config: Stage3Config, run: Run, token: str | None, *, afresh: bool = False) -> Inventory:
    """Count kept, reusable and missing records. `afresh` ignores all existing ones.

    Raises what reading the prompts raises, and PreconditionError if no adapter was verified yet."""
    identity = RecordIdentity.of(config, GenerationSettings.of(config), run.results)
    wanted = {prompt.id: prompt for prompt in load_prompts(config, token)}
    total, path = len(wanted), run / layout.PAIRS_JSONL
    if config.target_pairs:
        return _towards(run, config.target_pairs, wanted, identity, afresh)
    if afresh:
        return Inventory(0, 0, total)
    for _, record in read_jsonl(path) if path.is_file() else ():
        prompt = None if isinstance(record, BadLine) else wanted.get(str(record.get("id")))
        if prompt is not None and identity.is_of(prompt, record):  # type: ignore[arg-type]
            del wanted[prompt.id]
    kept = total - len(wanted)
    taken_over = sum(1 for _ in reusable_records(run, wanted, identity))
    return Inventory(kept, taken_over, total - kept - taken_over)


def _towards(run: Run, target: int, wanted: dict[str, Prompt], identity: RecordIdentity, afresh: bool) -> Inventory:
    """With `--target-pairs`, assuming that every prompt drawn gives a usable pair."""
    if afresh:
        return Inventory(0, 0, min(target, len(wanted)), target)
    path = run / layout.PAIRS_JSONL
    kept = [
        record
        for _, record in (read_jsonl(path) if path.is_file() else ())
        if not isinstance(record, BadLine)
        and (prompt := wanted.get(str(record.get("id")))) is not None
        and identity.is_of(prompt, record)
    ]
    missing = {prompt_id: prompt for prompt_id, prompt in wanted.items() if prompt_id not in {r["id"] for r in kept}}
    taken_over = list(reusable_records(run, missing, identity))
    usable = sum(record.get("status") == OK for record in [*kept, *taken_over])
    to_make = min(max(target - usable, 0), len(missing) - len(taken_over))
    return Inventory(len(kept), len(taken_over), to_make, target if to_make else None)
