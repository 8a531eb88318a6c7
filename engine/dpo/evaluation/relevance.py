"""How much both models' answers depend on their prompts, read by the base model that both stand on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from engine.core.events import Event, Progress
from engine.dpo.training.reference import base_active
from engine.models.chat import Conversation
from engine.pairs.relevance.measure import Answer, RelevanceMeter

if TYPE_CHECKING:
    from engine.dpo.training.trainer import Trained
    from engine.models.generation.sampling import Reply
    from engine.run.stop import StopToken

PROMPTS_AT_ONCE = 32

AnswerRelevance = tuple[Sequence[float | None], Sequence[float | None]]
"""Nats, of Stage 2's answers and of Stage 3's, in the order of the prompts; None for an empty answer."""


def answer_relevance(
    trained: Trained, prompts: Sequence[Conversation], stage2: Sequence[Reply], stage3: Sequence[Reply], stop: StopToken
) -> Generator[Event, None, AnswerRelevance]:
    """Raises Stopped between two batches."""
    meter = RelevanceMeter(trained.model, trained.tokenizer)  # type: ignore[arg-type]
    found: tuple[list[float | None], list[float | None]] = ([], [])
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        batch = range(start, min(start + PROMPTS_AT_ONCE, len(prompts)))
        for nats, replies in zip(found, (stage2, stage3), strict=True):
            with base_active(trained.model):
                measured = meter.measure([Answer(prompts[index], replies[index].text) for index in batch])
            nats += [one and one.relevance for one in measured]
        stop.raise_if_requested()
        yield Progress(batch.stop, len(prompts), "answers read", note="relevance")
    return found
