"""How many of the records that a run wants are there already: in its file, and in earlier sets."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core import layout
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import load_prompts
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

    @property
    def in_words(self) -> str:
        parts = {"kept": self.kept, "taken over": self.taken_over, "to make": self.missing}
        return ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)


def take_inventory(context: Context, *, afresh: bool = False) -> Inventory:
    """With `afresh` nothing that is there counts.

    Raises what reading the prompts raises, and PreconditionError before an adapter was verified."""
    config = context.config
    identity = RecordIdentity.of(config, GenerationSettings.of(config), context.run.results)
    wanted = {prompt.id: prompt for prompt in load_prompts(config, context.token_text)}
    total, path = len(wanted), context.run / layout.PAIRS_JSONL
    if afresh:
        return Inventory(0, 0, total)
    for _, record in read_jsonl(path) if path.is_file() else ():
        prompt = None if isinstance(record, BadLine) else wanted.get(str(record.get("id")))
        if prompt is not None and identity.holds(prompt, record):  # type: ignore[arg-type]
            del wanted[prompt.id]
    kept = total - len(wanted)
    taken_over = sum(1 for _ in reusable_records(context.run, wanted, identity))
    return Inventory(kept, taken_over, total - kept - taken_over)
