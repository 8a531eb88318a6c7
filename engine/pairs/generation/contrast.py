"""--method contrast: one prompt, answered by an assistant that follows a principle and by one that does the opposite.

Yang et al. 2023, "RLCD: Reinforcement Learning from Contrastive Distillation": which of the two is better follows from how
they were asked for, so that a policy need not be able to criticise itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from engine.models.backend import Backend
from engine.models.generation.sampling import Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.critique_revision import refusal_of
from engine.pairs.generation.dialogue import with_persona
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.principles.constitution import Principle


@dataclass
class Attempt:
    """Both answers under one principle."""

    principle: Principle
    chosen: Reply
    rejected: Reply
    fault: str


@dataclass
class ContrastInProgress:
    prompt: Prompt
    trials: list[Attempt] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return bool(self.trials) and self.trials[-1].fault == OK


def make_records(prompts: Sequence[Prompt], backend: Backend, recipe: GenerationSettings) -> list[PairRecord]:
    """The records of one batch, in the order of `prompts`; what failed is tried again under another principle."""
    makings = [ContrastInProgress(prompt) for prompt in prompts]
    for attempt in range(recipe.max_attempts):
        pending = [making for making in makings if not making.done]
        if pending:
            _try(pending, attempt, backend, recipe)
    return [_record(making) for making in makings]


def _try(makings: list[ContrastInProgress], attempt: int, backend: Backend, recipe: GenerationSettings) -> None:
    principles = [_drawn(making, attempt, recipe) for making in makings]

    def answers(personas: Sequence[str], step: str) -> list[Reply]:
        asked = [with_persona(making.prompt.messages, one) for making, one in zip(makings, personas, strict=True)]
        seeds = [seed_of(recipe.seed, making.prompt.id, step, attempt) for making in makings]
        return backend.reply(asked, recipe.sampling, seeds)

    chosen = answers([principle.followed for principle in principles], "chosen")
    rejected = answers([principle.contrary for principle in principles], "rejected")
    for making, principle, better, worse in zip(makings, principles, chosen, rejected, strict=True):
        making.trials.append(Attempt(principle, better, worse, _fault(making.prompt, better, worse)))


def _drawn(making: ContrastInProgress, attempt: int, recipe: GenerationSettings) -> Principle:
    """A principle that was not tried on this prompt, while there is one."""
    used = tuple(trial.principle.id for trial in making.trials)
    return recipe.constitution.draw(Random(seed_of(recipe.seed, making.prompt.id, "principle", attempt)), avoid=used)


def _fault(prompt: Prompt, chosen: Reply, rejected: Reply) -> str:
    refused = refusal_of(chosen) or refusal_of(rejected)
    if refused or not rejected.text:
        return refused or EMPTY_DRAFT
    found = detectors.reasons(prompt.text, rejected.text, chosen.text, finished=chosen.finished)
    return found[0] if found else OK


def _record(making: ContrastInProgress) -> PairRecord:
    told = making.trials[-1]
    steps = {"draft": told.rejected, "revision": told.chosen}
    return PairRecord(
        id=making.prompt.id,
        prompt=making.prompt.text,
        messages=making.prompt.messages,
        base_response=told.rejected.text,
        revised_response=told.chosen.text,
        critic_notes="",
        principle_ids=tuple(trial.principle.id for trial in making.trials),
        made_by=(told.principle.id,) if told.fault == OK else (),
        attempts=len(making.trials),
        status=told.fault,
        finish={step: "stopped" if reply.finished else "cut off" for step, reply in steps.items()},
        method="contrast",
    )
