"""Batched generation in which every row draws its own random numbers.

Sampling is done by the Gumbel trick: a row's temperature and nucleus are applied to its scores, Gumbel noise from the
row's own generator is added, and the largest wins; that is an exact draw from the softmax (Gumbel 1954; Maddison et al.
2014). So a row's text depends on its seed, and not on how many rows stood beside it, up to the rounding of floating point
in a differently shaped matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.models.chat import Conversation
from engine.models.rendering import conversation_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """Whether the model ended its turn itself; False where `max_new_tokens` cut it off."""
    tokens: int
    """Generated tokens, the end of turn included."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Reply]:
    """One reply to each conversation, in their order, as one left-padded batch.

    seeds   one a conversation, read where the temperature is above 0

    When `should_stop` turns true the batch ends at the next token; its replies are then incomplete, and the caller
    throws them away. Memory errors pass through.
    """
    import torch

    encoded = encode(tokenizer, conversations)
    width = encoded["input_ids"].shape[1]
    ends = end_of_turn_ids(model, tokenizer)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            **encoded.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=_processors(settings, seeds),
            stopping_criteria=_stopping(should_stop),
        )
    return [_reply(tokenizer, row, set(ends)) for row in output[:, width:].tolist()]


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> Any:
    """Left-padded ids of conversations that wait for the model's turn: `input_ids`, `attention_mask`, both (B, T) int.

    Padded on the right instead, eleven of twelve rows of a batch said something else than they say alone.
    """
    ids = [conversation_ids(tokenizer, conversation, reply_wanted=True) for conversation in conversations]
    return tokenizer.pad({"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt")


def prompt_length(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> int:
    """Tokens of a conversation that waits for the model's turn."""
    return len(conversation_ids(tokenizer, conversation, reply_wanted=True))


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends a turn: the model's own list, the tokenizer's EOS, and Gemma's end of turn where the vocabulary has it."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    if end_of_turn != tokenizer.unk_token_id:
        ids.add(end_of_turn)
    return sorted(i for i in ids if i is not None)


def _processors(settings: SamplingSettings, seeds: Sequence[int] | None) -> Any:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if settings.temperature == 0:
        return LogitsProcessorList()
    if seeds is None:
        raise ValueError("sampling needs one seed a conversation")
    processors = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(_gumbel_noise(seeds))
    return processors


def _gumbel_noise(seeds: Sequence[int]) -> Any:
    import torch
    from transformers import LogitsProcessor

    class GumbelNoise(LogitsProcessor):
        """Adds to each row noise from its own generator, kept on the CPU so that every device draws the same."""

        def __init__(self) -> None:
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            uniform = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in self.generators])
            gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-20)))
            return scores.float() + gumbel.to(scores.device)

    return GumbelNoise()


def _stopping(should_stop: Callable[[], bool]) -> Any:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Asked(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            return torch.full((input_ids.shape[0],), should_stop(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Asked()])


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[int]) -> Reply:
    """The reply in one row of generated ids: up to the first end of turn; padding follows it."""
    end = next((index for index, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Reply(text=text, finished=end is not None, tokens=len(kept) + (end is not None))
