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
    reused: int
    """Valid records in earlier sets."""
    missing: int
    """Records to make; a lower bound with `--target-pairs`, since not every new pair will be usable."""
    target: int | None = None
    """The number of usable pairs to reach, if `missing` is a lower bound."""

    @property
    def summary(self) -> str:
        parts = {"kept": self.kept, "reused": self.reused, "to make": self.missing}
        counts = ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
        if self.target is None:
            return counts
        return f"{counts}, and more until {self.target:,} are usable".removeprefix(", and ")


def take_inventory(config: Stage3Config, run: Run, token: str | None, *, from_scratch: bool = False) -> Inventory:
    """Count kept, reusable and missing records. `from_scratch` ignores all existing ones.

    Raises what reading the prompts raises, and PreconditionError if no adapter has been verified yet."""
    identity = RecordIdentity.of(config, GenerationSettings.of(config), run.results)
    wanted = {prompt.id: prompt for prompt in load_prompts(config, token)}
    total, path = len(wanted), run / layout.PAIRS_JSONL
    if config.target_pairs:
        return _inventory_for_target(run, config.target_pairs, wanted, identity, from_scratch)
    if from_scratch:
        return Inventory(0, 0, total)
    for _, record in read_jsonl(path) if path.is_file() else ():
        prompt = None if isinstance(record, BadLine) else wanted.get(str(record.get("id")))
        if prompt is not None and identity.matches(prompt, record):  # type: ignore[arg-type]
            del wanted[prompt.id]
    kept = total - len(wanted)
    reused = sum(1 for _ in reusable_records(run, wanted, identity))
    return Inventory(kept, reused, total - kept - reused)


def _inventory_for_target(
    run: Run, target: int, wanted: dict[str, Prompt], identity: RecordIdentity, from_scratch: bool
) -> Inventory:
    """The inventory with `--target-pairs`, assuming that every prompt drawn gives a usable pair."""
    if from_scratch:
        return Inventory(0, 0, min(target, len(wanted)), target)
    path = run / layout.PAIRS_JSONL
    kept = [
        record
        for _, record in (read_jsonl(path) if path.is_file() else ())
        if not isinstance(record, BadLine)
        and (prompt := wanted.get(str(record.get("id")))) is not None
        and identity.matches(prompt, record)
    ]
    missing = {prompt_id: prompt for prompt_id, prompt in wanted.items() if prompt_id not in {r["id"] for r in kept}}
    reused = list(reusable_records(run, missing, identity))
    usable = sum(record.get("status") == OK for record in [*kept, *reused])
    to_make = min(max(target - usable, 0), len(missing) - len(reused))
    return Inventory(len(kept), len(reused), to_make, target if to_make else None)
