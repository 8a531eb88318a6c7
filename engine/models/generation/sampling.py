"""Generate replies: render conversations with the chat template, generate in batches, decode."""

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

    from engine.models.generation.decoding import GeneratedRow, Sampler


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
    """Whether the model ended its turn; False if `max_new_tokens` cut it off."""
    tokens: int
    """Generated tokens, including the end of turn."""


@dataclass(frozen=True)
class RefusedReply(Reply):
    """A conversation to which the server gave no usable reply. `text` is empty, and the run continues."""

    reason: str = ""
    """The server's message, in one line."""
    too_long: bool = False
    """Whether conversation and reply exceed the server's context."""
    failed: bool = False
    """Whether the server did not refuse it but failed at every attempt, while it answered others; `reason` has the error."""
    no_text: bool = False
    """Whether the server responded, but not with text."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] | None = None,
    prefix_cache: PrefixCache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Reply]:
    """Generate one reply per conversation, in order, as one batch.

    seeds          one per conversation; required if the temperature is above 0
    prefix_cache   reused for common prefixes, and updated

    When `should_stop` returns True, the batch ends at the next token, and the caller must discard its incomplete replies.
    Out-of-memory errors pass through.
    """
    from engine.models.generation.decoding import generate_batch

    prompts = [conversation_ids(tokenizer, conversation, add_generation_prompt=True) for conversation in conversations]
    generated = generate_batch(
        model,
        prompts,
        _sampler(settings, seeds, len(prompts), model),
        end_of_turn_ids(model, tokenizer),
        [settings.max_new_tokens] * len(prompts),
        pad=tokenizer.pad_token_id,
        prefix_cache=prefix_cache,
        should_stop=should_stop,
    )
    if prefix_cache is not None:
        prefix_cache.keep_rows([row.prefix for row in generated if row.prefix is not None])
    return [_reply(tokenizer, row) for row in generated]


def prompt_length(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> int:
    """Length of a conversation in tokens, including the generation prompt."""
    return len(conversation_ids(tokenizer, conversation, add_generation_prompt=True))


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a turn: the model's own list, the tokenizer's EOS, and the chat template's end of turn."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids |= {tokenizer.eos_token_id, behaviour_of(tokenizer).end}
    return sorted(i for i in ids if i is not None)


def _sampler(settings: SamplingSettings, seeds: Sequence[int] | None, rows: int, model: PreTrainedModel) -> Sampler:
    from engine.models.generation.samplers import Greedy, Nucleus

    if settings.temperature == 0:
        return Greedy()
    if seeds is None or len(seeds) != rows:
        raise ValueError("sampling needs one seed per conversation")
    return Nucleus(settings.temperature, settings.top_p, seeds, settings.max_new_tokens, model.device)


def _reply(tokenizer: PreTrainedTokenizerBase, generated: GeneratedRow) -> Reply:
    ids = generated.ids[:-1] if generated.ended else generated.ids
    text = without_thought(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return Reply(text=text, finished=generated.ended, tokens=len(generated.ids))
