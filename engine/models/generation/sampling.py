"""Replies to conversations: rendered by the chat template, generated in batches, decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.models.chat import Conversation
from engine.models.chat_template import conversation_ids
from engine.models.generation.prefix_cache import PrefixCache
from engine.models.templates.behaviour import behaviour_of
from engine.models.templates.thoughts import without_thought

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.models.generation.decoding import Choose, GeneratedRow


@dataclass(frozen=True)
class SamplingSettings:
    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool
    """Whether the model ended its turn itself; False if `max_new_tokens` cut it off."""
    tokens: int
    """Generated tokens, the end of turn included."""


@dataclass(frozen=True)
class RefusedReply(Reply):
    """No reply: a server would not take the conversation. `text` is empty, and the run goes on."""

    reason: str = ""
    """The server's words, in one line."""
    too_long: bool = False
    """Because conversation and reply together do not fit its context."""
    no_text: bool = False
    """It answered, with what is no text."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] | None = None,
    memory: PrefixCache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Reply]:
    """One reply to each conversation, in their order, as one batch.

    seeds    one a conversation, read if the temperature is above 0
    memory   what was read before; given, conversations that begin alike are not read twice

    When `should_stop` turns true the batch ends at the next token; its replies are then incomplete, and the caller
    throws them away. Memory errors pass through.
    """
    from engine.models.generation.decoding import generate_batch

    prompts = [conversation_ids(tokenizer, conversation, reply_wanted=True) for conversation in conversations]
    said = generate_batch(
        model,
        prompts,
        _choice(settings, seeds, len(prompts), model),
        end_of_turn_ids(model, tokenizer),
        [settings.max_new_tokens] * len(prompts),
        pad=tokenizer.pad_token_id,
        memory=memory,
        should_stop=should_stop,
    )
    if memory is not None:
        memory.keep([row.read for row in said if row.read is not None])
    return [_reply(tokenizer, row) for row in said]


def prompt_length(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> int:
    """Tokens of a conversation that waits for the model's turn."""
    return len(conversation_ids(tokenizer, conversation, reply_wanted=True))


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends a turn: the model's own list, the tokenizer's EOS, and what the chat template writes behind a reply."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids |= {tokenizer.eos_token_id, behaviour_of(tokenizer).end}
    return sorted(i for i in ids if i is not None)


def _choice(settings: SamplingSettings, seeds: Sequence[int] | None, rows: int, model: PreTrainedModel) -> Choose:
    from engine.models.generation.samplers import Greedy, Nucleus

    if settings.temperature == 0:
        return Greedy()
    if seeds is None or len(seeds) != rows:
        raise ValueError("sampling needs one seed a conversation")
    return Nucleus(settings.temperature, settings.top_p, seeds, settings.max_new_tokens, model.device)


def _reply(tokenizer: PreTrainedTokenizerBase, said: GeneratedRow) -> Reply:
    ids = said.ids[:-1] if said.ended else said.ids
    text = without_thought(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return Reply(text=text, finished=said.ended, tokens=len(said.ids))
