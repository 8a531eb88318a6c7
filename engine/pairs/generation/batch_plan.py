"""Which prompts are generated side by side, written down before the first batch: a run that was killed makes the same batches.

A record's text may depend, in its last bits, on the shape of its batch. So batches are cut from what was missing when the
set was begun, not from what is missing when a process starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt
from engine.storage.files import sha256_of_json, write_json


@dataclass(frozen=True)
class BatchPlan:
    made_for: str
    """A hash of the prompts and of what makes their records."""
    records_before: int
    """Records that were in `pairs.jsonl` when the plan was made."""
    batch_size: int
    longest_tokens: int

    @property
    def is_sound(self) -> bool:
        """The file may be damaged, or somebody else's."""
        numbers = (self.records_before, self.batch_size, self.longest_tokens)
        return all(type(number) is int for number in numbers) and self.records_before >= 0 and self.batch_size >= 1

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def key_of_plan(prompts: Iterable[Prompt], identity: RecordIdentity) -> str:
    return sha256_of_json([identity.settings, identity.max_prompt_tokens, [prompt.id for prompt in prompts]])


def read_plan(path: Path, made_for: str) -> BatchPlan | None:
    """The plan of this set of prompts; None if there is none, or none that can be used: then one is made."""
    try:
        plan = BatchPlan(**json.loads(path.read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        return None
    return plan if plan.is_sound and plan.made_for == made_for else None


def prompts_to_make(prompts: Sequence[Prompt], recorded: Iterable[str], plan: BatchPlan) -> list[Prompt]:
    """Those that had no record when the plan was made.

    recorded   ids in the order of `pairs.jsonl`
    """
    before = set(list(recorded)[: plan.records_before])
    return [prompt for prompt in prompts if prompt.id not in before]
