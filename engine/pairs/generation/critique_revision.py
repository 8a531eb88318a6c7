"""Draft, critique and revision of a batch of prompts, each tried again with another principle if it failed.

Everything drawn (principle, sampling) has a seed of its own, made from the run's seed, the prompt's id, the step and the
attempt; batches are planned from the prompts alone. So a run that was killed and started again makes the same records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from engine.models.backend import Backend, critic_of
from engine.models.generation.sampling import RefusedReply, Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.dialogue import critique_prompt, revision_prompt
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.principles.constitution import Principle

BATCHES_IN_A_WINDOW = 8
"""Prompts are grouped by length inside windows of this many batches, so that the first pairs are no special ones."""
REFUSED = "refused by the server"
NO_TEXT = "a reply that is no text"

Item = TypeVar("Item")


@dataclass
class Attempt:
    """One critique and the revision that came of it."""

    principle: Principle
    critique: Reply
    revision: Reply
    fault: str
    """`ok`, or why the revision is no reply that stands alone."""


@dataclass
class PairInProgress:
    """One prompt on its way to a record."""

    prompt: Prompt
    draft: Reply
    trials: list[Attempt] = field(default_factory=list)
    rounds: list[Attempt] = field(default_factory=list)
    """The trials that succeeded, one a round."""

    @property
    def text(self) -> str:
        """What the next critique looks at."""
        return self.rounds[-1].revision.text if self.rounds else self.draft.text

    @property
    def last(self) -> Attempt | None:
        """The trial that the record tells of: the last one that succeeded, else the last one."""
        done = self.rounds or self.trials
        return done[-1] if done else None

    @property
    def status(self) -> str:
        if refusal_of(self.draft):
            return refusal_of(self.draft)
        if not self.draft.text:
            return EMPTY_DRAFT
        return self.last.fault if self.last else ""


def plan_batches(items: Sequence[Item], lengths: Sequence[int], batch_size: int) -> Iterator[list[Item]]:
    """Batches of items of like length; the plan depends on nothing but its arguments."""
    window = batch_size * BATCHES_IN_A_WINDOW
    for start in range(0, len(items), window):
        rows = sorted(zip(lengths[start : start + window], range(start, min(start + window, len(items))), strict=True))
        for first in range(0, len(rows), batch_size):
            yield [items[index] for _, index in rows[first : first + batch_size]]


def make_records(prompts: Sequence[Prompt], backend: Backend, recipe: GenerationSettings) -> list[PairRecord]:
    """The records of one batch, in the order of `prompts`."""
    drafts = backend.reply(
        [prompt.messages for prompt in prompts],
        recipe.sampling,
        [seed_of(recipe.seed, prompt.id, "draft", 0) for prompt in prompts],
    )
    makings = [PairInProgress(prompt, draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    going_on = [making for making in makings if not making.status]
    for number in range(recipe.rounds):
        for attempt in range(recipe.max_attempts):
            pending = [making for making in going_on if len(making.rounds) == number]
            if pending:
                _try(pending, number * recipe.max_attempts + attempt, backend, recipe)
        going_on = [making for making in going_on if len(making.rounds) > number]
    return [_record(making) for making in makings]


def too_long(prompt: Prompt, tokens: int, most: int) -> PairRecord:
    """The record of a prompt that the model is not asked."""
    return PairRecord(
        id=prompt.id,
        prompt=prompt.text,
        messages=prompt.messages,
        base_response="",
        revised_response="",
        critic_notes=f"{tokens} tokens, and {most} is the most",
        principle_ids=(),
        attempts=0,
        status=detectors.PROMPT_TOO_LONG,
    )


def refusal_of(reply: Reply) -> str:
    """Why there is no reply at all, if there is none."""
    if isinstance(reply, RefusedReply):
        return NO_TEXT if reply.no_text else detectors.PROMPT_TOO_LONG if reply.too_long else REFUSED
    return ""


def _try(makings: list[PairInProgress], attempt: int, backend: Backend, recipe: GenerationSettings) -> None:
    """One critique and revision of each."""
    principles, critic = [_drawn(making, attempt, recipe) for making in makings], critic_of(backend)
    critiques = critic.reply(
        [
            critique_prompt(making.prompt.messages, making.text, principle, recipe.examples)
            for making, principle in zip(makings, principles, strict=True)
        ],
        recipe.sampling,
        [seed_of(recipe.seed, making.prompt.id, "critique", attempt) for making in makings],
    )
    revisions = critic.reply(
        [
            revision_prompt(making.prompt.messages, making.text, critique.text, principle, recipe.examples)
            for making, critique, principle in zip(makings, critiques, principles, strict=True)
        ],
        recipe.sampling,
        [seed_of(recipe.seed, making.prompt.id, "revision", attempt) for making in makings],
    )
    for making, principle, critique, revision in zip(makings, principles, critiques, revisions, strict=True):
        trial = Attempt(principle, critique, revision, _fault(making, principle, critique, revision))
        making.trials.append(trial)
        if trial.fault == OK:
            making.rounds.append(trial)


def _drawn(making: PairInProgress, attempt: int, recipe: GenerationSettings) -> Principle:
    """A principle that was not tried on this prompt, while there is one."""
    used = tuple(trial.principle.id for trial in making.trials)
    return recipe.constitution.draw(Random(seed_of(recipe.seed, making.prompt.id, "principle", attempt)), avoid=used)


def _fault(making: PairInProgress, principle: Principle, critique: Reply, revision: Reply) -> str:
    refused = refusal_of(critique) or refusal_of(revision)
    if refused:
        return refused
    found = detectors.reasons(
        making.prompt.text,
        making.draft.text,
        revision.text,
        finished=revision.finished,
        critique=critique.text,
        requests=(principle.critique_request, principle.revision_request),
    )
    if not found and detectors.canonical(revision.text) == detectors.canonical(making.text):
        return detectors.IDENTICAL  # to the revision of the round before
    return found[0] if found else OK


def _record(making: PairInProgress) -> PairRecord:
    told = making.last
    steps: dict[str, Reply] = {"draft": making.draft}
    if told is not None:
        steps |= {"critique": told.critique, "revision": told.revision}
    return PairRecord(
        id=making.prompt.id,
        prompt=making.prompt.text,
        messages=making.prompt.messages,
        base_response=making.draft.text,
        revised_response=told.revision.text if told else "",
        critic_notes=told.critique.text
        if told
        else making.draft.reason
        if isinstance(making.draft, RefusedReply)
        else "",
        principle_ids=tuple(trial.principle.id for trial in making.trials),
        made_by=tuple(trial.principle.id for trial in making.rounds),
        attempts=len(making.trials),
        status=making.status,
        finish={step: "stopped" if reply.finished else "cut off" for step, reply in steps.items()},
    )
