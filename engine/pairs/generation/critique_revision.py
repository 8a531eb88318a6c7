"""--method critique-revision: draft, critique and revision of a batch of prompts, with retries under another principle.

Every random draw (principle, sampling) has its own seed, made from the run's seed, the prompt's id, the step and the attempt;
batches depend on the prompts alone. A run that was killed and restarted therefore makes the same records.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from engine.core.wording import plural
from engine.models.backend import Backend, critic_of
from engine.models.generation.sampling import RefusedReply, Reply
from engine.pairs import detectors
from engine.pairs.data.record import EMPTY_DRAFT, FAILED_ON_SERVER, OK, PairRecord
from engine.pairs.data.seeds import seed_of
from engine.pairs.generation.dialogue import critique_prompt, revision_prompt
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.principles.constitution import Principle

BATCHES_PER_WINDOW = 8
"""Prompts are sorted by length within windows of this many batches, so that the first pairs are not all short ones."""
REFUSED = "refused by the server"
NO_TEXT = "a reply that is no text"

Item = TypeVar("Item")


@dataclass
class Attempt:
    """One critique and its revision."""

    principle: Principle
    critique: Reply
    revision: Reply
    fault: str
    """`ok`, or why the revision is not usable."""


@dataclass
class PairInProgress:
    """One prompt being turned into a record."""

    prompt: Prompt
    draft: Reply
    attempts: list[Attempt] = field(default_factory=list)
    rounds: list[Attempt] = field(default_factory=list)
    """The attempts that succeeded, one per round."""

    @property
    def text(self) -> str:
        """The text that the next critique is about."""
        return self.rounds[-1].revision.text if self.rounds else self.draft.text

    @property
    def last(self) -> Attempt | None:
        """The attempt that the record describes: the last successful one, else the last one."""
        candidates = self.rounds or self.attempts
        return candidates[-1] if candidates else None

    @property
    def status(self) -> str:
        if server_failure(self.draft):
            return server_failure(self.draft)
        if not self.draft.text:
            return EMPTY_DRAFT
        return self.last.fault if self.last else ""


def plan_batches(items: Sequence[Item], lengths: Sequence[int], batch_size: int) -> Iterator[list[Item]]:
    """Batches of items of similar length; a pure function of its arguments."""
    window = batch_size * BATCHES_PER_WINDOW
    for start in range(0, len(items), window):
        rows = sorted(zip(lengths[start : start + window], range(start, min(start + window, len(items))), strict=True))
        for first in range(0, len(rows), batch_size):
            yield [items[index] for _, index in rows[first : first + batch_size]]


def make_records(
    prompts: Sequence[Prompt], backend: Backend, settings: GenerationSettings
) -> Generator[str, None, list[PairRecord]]:
    """The records of one batch, in the order of `prompts`. Yields each step as it begins."""
    yield plural(len(prompts), "draft")
    drafts = backend.reply(
        [prompt.messages for prompt in prompts],
        settings.sampling,
        [seed_of(settings.seed, prompt.id, "draft", 0) for prompt in prompts],
    )
    pairs = [PairInProgress(prompt, draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    open_pairs = [pair for pair in pairs if not pair.status]
    for number in range(settings.rounds):
        for attempt in range(settings.max_attempts):
            pending = [pair for pair in open_pairs if len(pair.rounds) == number]
            if pending:
                yield from _try(pending, number * settings.max_attempts + attempt, backend, settings)
        open_pairs = [pair for pair in open_pairs if len(pair.rounds) > number]
    return [_record(pair) for pair in pairs]


def too_long_record(prompt: Prompt, tokens: int, limit: int) -> PairRecord:
    """The record of a prompt that is too long for the model."""
    return PairRecord(
        id=prompt.id,
        prompt=prompt.text,
        messages=prompt.messages,
        base_response="",
        revised_response="",
        critic_notes=f"{tokens} tokens; the limit is {limit}",
        principle_ids=(),
        attempts=0,
        status=detectors.PROMPT_TOO_LONG,
    )


def server_failure(reply: Reply) -> str:
    """Why the server sent no reply; empty if it did."""
    if isinstance(reply, RefusedReply):
        if reply.failed:
            return FAILED_ON_SERVER
        return NO_TEXT if reply.no_text else detectors.PROMPT_TOO_LONG if reply.too_long else REFUSED
    return ""


def server_message(*replies: Reply) -> str:
    """The server's message for the first missing reply; empty if none is missing."""
    return next((reply.reason for reply in replies if isinstance(reply, RefusedReply)), "")


def _try(
    pairs: list[PairInProgress], attempt: int, backend: Backend, settings: GenerationSettings
) -> Generator[str, None, None]:
    """Make one critique and one revision for each pair."""
    yield plural(len(pairs), "critique")
    principles, critic = [_draw_principle(pair, attempt, settings) for pair in pairs], critic_of(backend)
    critiques = critic.reply(
        [
            critique_prompt(pair.prompt.messages, pair.text, principle, settings.examples)
            for pair, principle in zip(pairs, principles, strict=True)
        ],
        settings.sampling,
        [seed_of(settings.seed, pair.prompt.id, "critique", attempt) for pair in pairs],
    )
    yield plural(len(pairs), "revision")
    revisions = critic.reply(
        [
            revision_prompt(pair.prompt.messages, pair.text, critique.text, principle, settings.examples)
            for pair, critique, principle in zip(pairs, critiques, principles, strict=True)
        ],
        settings.sampling,
        [seed_of(settings.seed, pair.prompt.id, "revision", attempt) for pair in pairs],
    )
    for pair, principle, critique, revision in zip(pairs, principles, critiques, revisions, strict=True):
        made = Attempt(principle, critique, revision, _fault(pair, principle, critique, revision))
        pair.attempts.append(made)
        if made.fault == OK:
            pair.rounds.append(made)


def _draw_principle(pair: PairInProgress, attempt: int, settings: GenerationSettings) -> Principle:
    """Draw a principle that this prompt has not used yet, if any is left."""
    used = tuple(earlier.principle.id for earlier in pair.attempts)
    return settings.constitution.draw(Random(seed_of(settings.seed, pair.prompt.id, "principle", attempt)), avoid=used)


def _fault(pair: PairInProgress, principle: Principle, critique: Reply, revision: Reply) -> str:
    failure = server_failure(critique) or server_failure(revision)
    if failure:
        return failure
    reasons = detectors.reasons(
        pair.prompt.text,
        pair.draft.text,
        revision.text,
        finished=revision.finished,
        critique=critique.text,
        requests=(principle.critique_request, principle.revision_request),
    )
    if not reasons and detectors.canonical(revision.text) == detectors.canonical(pair.text):
        return detectors.IDENTICAL  # to the previous round's revision
    return reasons[0] if reasons else OK


def _record(pair: PairInProgress) -> PairRecord:
    last = pair.last
    steps: dict[str, Reply] = {"draft": pair.draft}
    if last is not None:
        steps |= {"critique": last.critique, "revision": last.revision}
    message = "" if pair.status == OK else server_message(*steps.values())
    return PairRecord(
        id=pair.prompt.id,
        prompt=pair.prompt.text,
        messages=pair.prompt.messages,
        base_response=pair.draft.text,
        revised_response=last.revision.text if last else "",
        critic_notes=message or (last.critique.text if last else ""),
        principle_ids=tuple(attempt.principle.id for attempt in pair.attempts),
        made_by=tuple(attempt.principle.id for attempt in pair.rounds),
        attempts=len(pair.attempts),
        status=pair.status,
        finish={step: "stopped" if reply.finished else "cut off" for step, reply in steps.items()},
    )
