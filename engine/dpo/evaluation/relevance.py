"""How relevant both policies' answers are to their prompts, measured with their base model."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from engine.core.events import Event, Progress
from engine.dpo.evaluation.tasks import TaskQueue
from engine.models.chat import Conversation

if TYPE_CHECKING:
    from engine.models.generation.sampling import Reply

PROMPTS_AT_ONCE = 32

AnswerRelevance = tuple[Sequence[float | None], Sequence[float | None]]
"""Relevance in nats of Stage 2's and Stage 3's answers, in the order of the prompts; None for empty answers."""


def answer_relevance(
    queue: TaskQueue, prompts: Sequence[Conversation], stage2: Sequence[Reply], stage3: Sequence[Reply]
) -> Generator[Event, None, AnswerRelevance]:
    """Submit both policies' answers; collect their relevance with `yield from`."""
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    for start in starts:
        for replies in (stage2, stage3):
            answers = [(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
            queue.submit([{"relevance of": answers[start : start + PROMPTS_AT_ONCE]}])

    def collected() -> Generator[Event, None, AnswerRelevance]:
        relevance: tuple[list[float | None], list[float | None]] = ([], [])
        for _ in starts:
            for nats in relevance:
                nats += yield from queue.next_result()
            yield Progress(len(relevance[0]), len(prompts), "answers read", note="relevance")
        return relevance

    return collected()
