"""How much both models' answers depend on their prompts, read by the base model that both stand on."""

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
"""Nats, of Stage 2's answers and of Stage 3's, in the order of the prompts; None for an empty answer."""


def answer_relevance(
    queue: TaskQueue, prompts: Sequence[Conversation], stage2: Sequence[Reply], stage3: Sequence[Reply]
) -> Generator[Event, None, AnswerRelevance]:
    """Collect with `yield from`."""
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    for start in starts:
        for replies in (stage2, stage3):
            both = zip(prompts, replies, strict=True)
            read = [(prompt, reply.text) for prompt, reply in both][start : start + PROMPTS_AT_ONCE]
            queue.submit([{"relevance of": read}])

    def collected() -> Generator[Event, None, AnswerRelevance]:
        found: tuple[list[float | None], list[float | None]] = ([], [])
        for _ in starts:
            for nats in found:
                nats += yield from queue.next_result()
            yield Progress(len(found[0]), len(prompts), "answers read", note="relevance")
        return found

    return collected()
