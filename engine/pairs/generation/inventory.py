"""How many of the records that a run wants are there already: in its file, and in earlier sets."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core import layout
from engine.pairs.data.record import OK
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt, load_prompts
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.generation.superseded import reusable_records
from engine.run.context import Context
from engine.storage.jsonl import BadLine, read_jsonl


@dataclass(frozen=True)
class Inventory:
    kept: int
    """Records in `pairs.jsonl` that hold."""
    taken_over: int
    """Records of earlier sets that hold."""
    missing: int
    """As far as that is known: with `--target-pairs` it depends on how many of them are usable."""
    target: int | None = None
    """Usable pairs that are wanted, if `missing` is a guess."""

    @property
    def in_words(self) -> str:
        parts = {"kept": self.kept, "taken over": self.taken_over, "to make": self.missing}
        told = ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
        return (
            told if self.target is None else f"{told}, and more until {self.target:,} are usable".removeprefix(", and ")
        )


def take_inventory(context: Context, *, afresh: bool = False) -> Inventory:
    """With `afresh` nothing that is there counts.

    Raises what reading the prompts raises, and PreconditionError before an adapter was verified."""
    config = context.config
    identity = RecordIdentity.of(config, GenerationSettings.of(config), context.run.results)
    wanted = {prompt.id: prompt for prompt in load_prompts(config, context.token_text)}
    total, path = len(wanted), context.run / layout.PAIRS_JSONL
    if config.target_pairs:
        return _towards(context, config.target_pairs, wanted, identity, afresh)
    if afresh:
        return Inventory(0, 0, total)
    for _, record in read_jsonl(path) if path.is_file() else ():
        prompt = None if isinstance(record, BadLine) else wanted.get(str(record.get("id")))
        if prompt is not None and identity.holds(prompt, record):  # type: ignore[arg-type]
            del wanted[prompt.id]
    kept = total - len(wanted)
    taken_over = sum(1 for _ in reusable_records(context.run, wanted, identity))
    return Inventory(kept, taken_over, total - kept - taken_over)


def _towards(
    context: Context, target: int, wanted: dict[str, Prompt], identity: RecordIdentity, afresh: bool
) -> Inventory:
    """With `--target-pairs`: as if every prompt that is drawn gave a usable pair."""
    if afresh:
        return Inventory(0, 0, min(target, len(wanted)), target)
    path = context.run / layout.PAIRS_JSONL
    kept = [
        record
        for _, record in (read_jsonl(path) if path.is_file() else ())
        if not isinstance(record, BadLine)
        and (prompt := wanted.get(str(record.get("id")))) is not None
        and identity.holds(prompt, record)
    ]
    missing = {prompt_id: prompt for prompt_id, prompt in wanted.items() if prompt_id not in {r["id"] for r in kept}}
    taken_over = list(reusable_records(context.run, missing, identity))
    usable = sum(record.get("status") == OK for record in [*kept, *taken_over])
    to_make = min(max(target - usable, 0), len(missing) - len(taken_over))
    return Inventory(len(kept), len(taken_over), to_make, target if to_make else None)
