"""--method contrast: answer the same prompt as an assistant that follows a principle (chosen) and as one that does the opposite.

Yang et al. 2023, "RLCD: Reinforcement Learning from Contrastive Distillation". The system message of an answer decides which
one is better, so the policy need not be able to criticise itself.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from random import Random

from engine.core.wording import plural
from engine.models.backend import Backend
from engine.models.generation.sampling import Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.critique_revision import server_failure, server_message
from engine.pairs.generation.dialogue import with_persona
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
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
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].fault == OK


def make_records(
    prompts: Sequence[Prompt], backend: Backend, settings: GenerationSettings
) -> Generator[str, None, list[PairRecord]]:
    """The records of one batch, in the order of `prompts`. Yields each step as it begins. Retries failed prompts under another
    principle.
    """
    pairs = [ContrastInProgress(prompt) for prompt in prompts]
    for attempt in range(settings.max_attempts):
        pending = [pair for pair in pairs if not pair.done]
        if pending:
            yield from _try(pending, attempt, backend, settings)
    return [_record(pair) for pair in pairs]


def _try(
    pairs: list[ContrastInProgress], attempt: int, backend: Backend, settings: GenerationSettings
) -> Generator[str, None, None]:
    principles = [_draw_principle(pair, attempt, settings) for pair in pairs]

    def answers(personas: Sequence[str], step: str) -> list[Reply]:
        conversations = [
            with_persona(pair.prompt.messages, persona) for pair, persona in zip(pairs, personas, strict=True)
        ]
        seeds = [seed_of(settings.seed, pair.prompt.id, step, attempt) for pair in pairs]
        return backend.reply(conversations, settings.sampling, seeds)

    yield plural(len(pairs), "chosen answer")
    chosen = answers([principle.chosen_system for principle in principles], "chosen")
    yield plural(len(pairs), "rejected answer")
    rejected = answers([principle.rejected_system for principle in principles], "rejected")
    for pair, principle, better, worse in zip(pairs, principles, chosen, rejected, strict=True):
        pair.attempts.append(Attempt(principle, better, worse, _fault(pair.prompt, principle, better, worse)))


def _draw_principle(pair: ContrastInProgress, attempt: int, settings: GenerationSettings) -> Principle:
    """Draw a principle that this prompt has not used yet, if any is left."""
    used = tuple(earlier.principle.id for earlier in pair.attempts)
    return settings.constitution.draw(Random(seed_of(settings.seed, pair.prompt.id, "principle", attempt)), avoid=used)


def _fault(prompt: Prompt, principle: Principle, chosen: Reply, rejected: Reply) -> str:
    failure = server_failure(chosen) or server_failure(rejected)
    if failure or not rejected.text:
        return failure or EMPTY_DRAFT
    requests = (principle.chosen_system,)
    reasons = detectors.reasons(prompt.text, rejected.text, chosen.text, finished=chosen.finished, requests=requests)
    return reasons[0] if reasons else OK


def _record(pair: ContrastInProgress) -> PairRecord:
    last = pair.attempts[-1]
    steps = {"draft": last.rejected, "revision": last.chosen}
    return PairRecord(
        id=pair.prompt.id,
        prompt=pair.prompt.text,
        messages=pair.prompt.messages,
        base_response=last.rejected.text,
        revised_response=last.chosen.text,
        critic_notes="" if last.fault == OK else server_message(last.chosen, last.rejected),
        principle_ids=tuple(attempt.principle.id for attempt in pair.attempts),
        made_by=(last.principle.id,) if last.fault == OK else (),
        attempts=len(pair.attempts),
        status=last.fault,
        finish={step: "stopped" if reply.finished else "cut off" for step, reply in steps.items()},
        method="contrast",
    )
