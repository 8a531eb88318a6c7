"""The conversations that ask for a draft, a critique and a revision, or for an answer in a role.

Each of the three is generated separately from the whole conversation so far, through the model's own chat template, so no
tagged output has to be parsed. Worked examples come first and are the same for every prompt, so a backend reads them only
once.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.models.chat import ChatMessage, Conversation
from engine.pairs.principles.constitution import Principle

__all__ = ["ChatMessage", "Conversation", "critique_prompt", "revision_prompt", "with_persona"]


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


def with_persona(conversation: Conversation, persona: str) -> Conversation:
    """The conversation with `persona` as its system message, put before the text of an existing one.

    The two answers of a contrast differ only in the persona (Yang et al. 2023, RLCD, section 3). If it came after the question,
    as a rule, small models would talk about the rule.
    """
    if conversation[0]["role"] == "system":
        first, *conversation = conversation
        persona = f"{persona}\n\n{first['content']}"
    return [{"role": "system", "content": persona}, *conversation]
