"""Test the chat template on every kind of conversation that a run renders with it, before loading any weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.core.events import Check
from engine.models.chat import ChatMessage, Conversation
from engine.models.chat_template import reply_ids
from engine.models.loading import load_tokenizer
from engine.models.templates.behaviour import Behaviour, behaviour_of
from engine.pairs.generation.dialogue import critique_prompt, revision_prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.security.sanitize import visible_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION: Conversation = [{"role": "user", "content": "How do I mend a dripping tap?"}]
DRAFT, CRITIQUE = "Close the valve first.", "It does not say how."
FOLLOW_UP: Conversation = [
    *QUESTION,
    {"role": "assistant", "content": DRAFT},
    {"role": "user", "content": "And after that?"},
]
WITH_SYSTEM: Conversation = [{"role": "system", "content": "Be brief."}, *FOLLOW_UP]
REPLY: ChatMessage = {"role": "assistant", "content": "Replace the washer."}


def check_template(config: Stage3Config, token: str | None) -> Iterator[Check]:
    """Raise PreconditionError if the template cannot be used for generation and training."""
    tokenizer = load_tokenizer(config, token)
    try:
        for conversation in _conversations(GenerationSettings.of(config)):
            reply_ids(tokenizer, conversation, [REPLY])
    except PreconditionError as error:
        yield Check("chat template", "failed", visible_line(error.what, 400))
        raise
    yield Check("chat template", "ok", visible_line(describe(behaviour_of(tokenizer), tokenizer), 400))


def describe(behaviour: Behaviour, tokenizer: PreTrainedTokenizerBase) -> str:
    """`a reply ends with <|im_end|>; rendered with enable_thinking=False`."""
    end = tokenizer.convert_ids_to_tokens(behaviour.end)
    parts = [f"{end} is appended to each reply" if behaviour.appended else f"a reply ends with {end}"]
    if behaviour.options.switches:
        switches = ", ".join(f"{name}={value}" for name, value in behaviour.options.switches.items())
        parts.append(f"rendered with {switches}")
    if behaviour.opening:
        parts.append(f"each reply begins with {behaviour.opening!r}")
    if behaviour.options.folds_system:
        parts.append("a system message is merged into the first user turn")
    return "; ".join(parts)


def _conversations(settings: GenerationSettings) -> Iterator[Conversation]:
    """The prompts for a draft, a critique and a revision in this run, with its worked examples."""
    principle = settings.constitution.principles[0]
    for conversation in (QUESTION, FOLLOW_UP, WITH_SYSTEM):
        yield conversation
        yield critique_prompt(conversation, DRAFT, principle, settings.examples)
        yield revision_prompt(conversation, DRAFT, CRITIQUE, principle, settings.examples)
