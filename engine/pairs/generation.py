"""Draft, critique and revision of a batch of prompts, each tried again with another principle where it failed.

Everything drawn (principle, sampling) has a seed of its own, made from the run's seed, the prompt's id, the step and the
attempt; batches are planned from the prompts alone. So a run that was killed and started again makes the same records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from engine.config import Stage3Config
from engine.models.chat import Conversation
from engine.models.sampling import Reply, SamplingSettings
from engine.pairs import detectors
from engine.pairs.constitution import Constitution, Principle
from engine.pairs.dialogue import critique_prompt, revision_prompt
from engine.pairs.prompts import Prompt
from engine.pairs.record import OK, PairRecord

BATCHES_IN_A_WINDOW = 8
"""Prompts are grouped by length inside windows of this many batches, so that the first pairs are no special ones."""

EMPTY_DRAFT = "empty draft"


class Backend(Protocol):
    """Whatever answers conversations: the local model, or a server."""

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        """One reply each, in order. Raises Stopped when the run is asked to stop."""
        ...

    def length(self, conversation: Conversation) -> int:
        """Tokens of the conversation as the model reads it."""
        ...


@dataclass
class Draft:
    """One prompt on its way to a record."""

    prompt: Prompt
    draft: Reply
    critique: Reply | None = None
    revision: Reply | None = None
    principles: list[Principle] = field(default_factory=list)
    status: str = ""


def plan_batches(prompts: Sequence[Prompt], lengths: Sequence[int], batch_size: int) -> Iterator[list[Prompt]]:
    """Batches of prompts of like length; the plan depends on nothing but its arguments."""
    window = batch_size * BATCHES_IN_A_WINDOW
    for start in range(0, len(prompts), window):
        rows = sorted(
            zip(lengths[start : start + window], range(start, min(start + window, len(prompts))), strict=True)
        )
        for first in range(0, len(rows), batch_size):
            yield [prompts[index] for _, index in rows[first : first + batch_size]]


def make_records(
    prompts: Sequence[Prompt], backend: Backend, constitution: Constitution, config: Stage3Config
) -> list[PairRecord]:
    """The records of one batch, in the order of `prompts`."""
    settings = SamplingSettings(config.max_new_tokens, config.temperature, config.top_p)
    replies = backend.reply(
        [prompt.messages for prompt in prompts], settings, [seed_of(config.seed, p.id, "draft", 0) for p in prompts]
    )
    rows = [Draft(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    for row in rows:
        row.status = "" if row.draft.text else EMPTY_DRAFT
    for attempt in range(config.max_attempts):
        pending = [row for row in rows if row.status not in (OK, EMPTY_DRAFT)]
        if pending:
            _revise(pending, attempt, backend, constitution, config, settings)
    return [_record(row) for row in rows]


def too_long(prompt: Prompt, tokens: int) -> PairRecord:
    """The record of a prompt that the model is not asked."""
    return PairRecord(
        id=prompt.id,
        prompt=prompt.text,
        messages=prompt.messages,
        base_response="",
        revised_response="",
        critic_notes=f"{tokens} tokens",
        principle_ids=(),
        attempts=0,
        status=detectors.PROMPT_TOO_LONG,
    )


def seed_of(seed: int, prompt_id: str, step: str, attempt: int) -> int:
    """63 bits that nothing but the arguments decides."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}:{step}:{attempt}".encode()).digest()[:8], "big") >> 1


def _revise(
    rows: list[Draft],
    attempt: int,
    backend: Backend,
    constitution: Constitution,
    config: Stage3Config,
    settings: SamplingSettings,
) -> None:
    for row in rows:
        used = tuple(principle.id for principle in row.principles)
        random = Random(seed_of(config.seed, row.prompt.id, "principle", attempt))
        row.principles.append(constitution.draw(random, avoid=used))
    critiques = backend.reply(
        [critique_prompt(row.prompt.messages, row.draft.text, row.principles[-1]) for row in rows],
        settings,
        [seed_of(config.seed, row.prompt.id, "critique", attempt) for row in rows],
    )
    revisions = backend.reply(
        [
            revision_prompt(row.prompt.messages, row.draft.text, critique.text, row.principles[-1])
            for row, critique in zip(rows, critiques, strict=True)
        ],
        settings,
        [seed_of(config.seed, row.prompt.id, "revision", attempt) for row in rows],
    )
    for row, critique, revision in zip(rows, critiques, revisions, strict=True):
        row.critique, row.revision = critique, revision
        found = detectors.reasons(row.prompt.text, row.draft.text, revision.text, finished=revision.finished)
        row.status = found[0] if found else OK


def _record(row: Draft) -> PairRecord:
    steps = {"draft": row.draft, "critique": row.critique, "revision": row.revision}
    return PairRecord(
        id=row.prompt.id,
        prompt=row.prompt.text,
        messages=row.prompt.messages,
        base_response=row.draft.text,
        revised_response=row.revision.text if row.revision else "",
        critic_notes=row.critique.text if row.critique else "",
        principle_ids=tuple(principle.id for principle in row.principles),
        attempts=len(row.principles),
        status=row.status,
        finish={step: "stopped" if reply.finished else "cut off" for step, reply in steps.items() if reply},
    )
