"""The batch plan, written before the first batch, so that a run that was killed makes the same batches again.

The shape of a batch may change the last bits of a row's logits, and with them its text. Batches are therefore cut from the
prompts that were missing when the set was started, not from those that are missing when a process starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt
from engine.storage.documents import read_json_or_none
from engine.storage.files import sha256_of_json, write_json

LARGEST_BATCH = 1 << 20
"""In prompts. No machine generates that many at once, so a larger number in the file means damage."""


@dataclass(frozen=True)
class BatchPlan:
    made_for: str
    """A hash of the prompts and of the settings that make their records."""
    records_before: Annotated[int, Field(ge=0, strict=True)]
    """Records in `pairs.jsonl` when the plan was made."""
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH, strict=True)]
    longest_tokens: Annotated[int, Field(ge=0, strict=True)]

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def plan_key(prompts: Iterable[Prompt], identity: RecordIdentity) -> str:
    return sha256_of_json([identity.settings, identity.max_prompt_tokens, [prompt.id for prompt in prompts]])


def read_plan(path: Path, made_for: str) -> BatchPlan | None:
    """The saved plan for this set of prompts; None if there is no usable one."""
    plan = read_json_or_none(path, BatchPlan)
    return plan if plan is not None and plan.made_for == made_for else None


def prompts_to_make(prompts: Sequence[Prompt], recorded: Iterable[str], plan: BatchPlan) -> list[Prompt]:
    """The prompts that had no record when the plan was made.

    recorded   ids in the order of `pairs.jsonl`
    """
    before = set(list(recorded)[: plan.records_before])
    return [prompt for prompt in prompts if prompt.id not in before]
