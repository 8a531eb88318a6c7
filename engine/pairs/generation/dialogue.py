"""The conversation of one pair: draft, critique, revision, each asked for in the same dialogue; or an answer under a rule.

Nothing is parsed out of a tagged answer: each of the three is a generation of its own, and what the next one sees is
the whole conversation so far, through the model's own chat template. Worked examples, if there are any, stand before
it: the same ones in the same place for every prompt, so that a backend reads them once.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.principles.constitution import Principle

__all__ = ["ChatMessage", "Conversation", "critique_prompt", "revision_prompt", "under_a_rule"]

UNDER_A_RULE = "{asked}\n\n(Keep to this in your answer, without speaking about it: {rule})"
"""Both answers of a contrast are asked for in the same words, so that they differ by the rule alone."""


def critique_prompt(
    conversation: Conversation, draft: str, principle: Principle, examples: Sequence[ChatMessage] = ()
) -> Conversation:
    """The conversation that asks for a critique of `draft`."""
    return [
        *examples,
        *conversation,
        {"role": "assistant", "content": draft},
        {"role": "user", "content": principle.critique_request},
    ]


def revision_prompt(
    conversation: Conversation, draft: str, critique: str, principle: Principle, examples: Sequence[ChatMessage] = ()
) -> Conversation:
    """The conversation that asks for a revision of `draft` after `critique`."""
    return [
        *critique_prompt(conversation, draft, principle, examples),
        {"role": "assistant", "content": critique},
        {"role": "user", "content": principle.revision_request},
    ]


def under_a_rule(conversation: Conversation, rule: str) -> Conversation:
    """The conversation, its last question with a rule for the answer (Yang et al. 2023, RLCD, section 3)."""
    asked = UNDER_A_RULE.format(asked=conversation[-1]["content"], rule=rule)
    return [*conversation[:-1], {"role": "user", "content": asked}]
