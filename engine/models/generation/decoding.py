"""Batched decoding with a KV prefix cache; finished rows are dropped from the batch.

    1. prefill   run the part of each prompt that the prefix cache lacks, in groups of similar length (or all at once)
    2. join      copy the rows' keys and values into one cache, padded on the left
    3. decode    per step: sample a token for each row, drop finished rows, run one forward pass of one token per row

Letters for shapes: R rows, T columns (tokens, padding included), V vocabulary. Imports torch; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from engine.models.generation.kv_cache import attends_to_all, copy_row, join_prefixes, layer_count
from engine.models.generation.prefill import last_logits, left_padded, prefill_rows
from engine.models.generation.prefix_cache import (
    MIN_PREFIX_TOKENS,
    CachedPrefix,
    PrefixCache,
    PrefixMatch,
    common_prefix,
)
from engine.models.length_groups import TOKENS_PER_FORWARD, group_by_length

COMPACT_AT = 0.75
"""The batch is compacted once the share of unfinished rows is no larger than this."""

Sampler = Callable[[Tensor, Tensor, int], Tensor]
"""(logits (R, V), rows (R,), step) → tokens (R,)."""


@dataclass
class GeneratedRow:
    """The tokens generated for one prompt so far."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether its last token ends the turn."""
    prefix: CachedPrefix | None = None
    """Keys and values of prompt and reply, except for the last token, for the next call. None without a prefix cache."""


def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    stop_ids: Sequence[int],
    limits: Sequence[int],
    *,
    pad: int,
    prefix_cache: PrefixCache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[GeneratedRow]:
    """Generate a continuation of each of `prompts` (token ids), in order.

    stop_ids       tokens that end a turn
    limits         maximum number of new tokens per row
    pad            token for masked columns
    prefix_cache   prefixes from earlier calls; the results are the same with and without it
    should_stop    polled at every token; once it returns True, the rows are returned incomplete
    """
    longest = max(map(len, prompts)) + max(limits)
    with torch.inference_mode():
        if attends_to_all(model, longest):
            batch, logits = _prefill_in_groups(model, prompts, max(limits), pad, prefix_cache)
        else:
            batch, logits = _prefill_at_once(model, prompts, pad)
        return _decode_loop(model, batch, logits, sampler, set(stop_ids), limits, prefix_cache is not None, should_stop)


@dataclass
class _Batch:
    """The rows that are being decoded, padded on the left. A slot is a place in the batch; a row is the index of a prompt."""

    prompts: Sequence[Sequence[int]]
    rows: list[int]
    """The row in each slot, (R,)."""
    cache: Cache
    """Keys and values, (R, heads, T, head size) per layer."""
    mask: Tensor
    """(R, T) int: 1 for a token, 0 for padding."""
    can_drop_rows: bool
    """Whether rows of the cache can be dropped and copied."""

    def forward(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Run one token per slot, (R,); returns the logits of the next one, (R, V)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)  # (R, T + 1)
        return last_logits(model, tokens.unsqueeze(1), self.mask, self.cache)[:, -1]

    def copy_prefix(self, slot: int, generated: GeneratedRow) -> CachedPrefix:
        """Keys and values of the row in `slot`: its prompt and all generated tokens but the last, which was never run."""
        ids = [*self.prompts[self.rows[slot]], *generated.ids[:-1]]
        first = int(self.mask[slot].argmax())  # the first column that is not padding
        return copy_row(self.cache, slot, ids, slice(first, first + len(ids)))

    def keep_slots(self, slots: list[int]) -> None:
        """Drop all other slots, and the columns that are padding in every remaining row: (R, T) → (len(slots), T - padding)."""
        kept = torch.tensor(slots, device=self.mask.device)
        mask = self.mask[kept]
        first_column = int(mask.argmax(dim=1).min())  # the first that is not padding in some row
        self.mask = mask[:, first_column:].contiguous()
        self.rows = [self.rows[slot] for slot in slots]
        for layer in self.cache.layers:
            layer.select(kept, first_column)


def _decode_loop(
    model: PreTrainedModel,
    batch: _Batch,
    logits: Tensor,
    sampler: Sampler,
    stop_ids: set[int],
    limits: Sequence[int],
    keep_prefixes: bool,
    should_stop: Callable[[], bool],
) -> list[GeneratedRow]:
    """Decode until every row has ended or reached its limit, or `should_stop` returns True.

    logits   after the last token of each prompt, (R, V)
    """
    generated = [GeneratedRow() for _ in batch.prompts]
    for step in range(max(limits)):
        # Sample one token per slot. A finished row that is still in the batch gets one, too; it is ignored.
        tokens = sampler(logits, torch.tensor(batch.rows, device=logits.device), step)  # (R,)
        unfinished = []
        for slot, token in enumerate(tokens.tolist()):
            row = batch.rows[slot]
            if _is_unfinished(generated[row], limits[row]):
                generated[row].ids.append(token)
                generated[row].ended = token in stop_ids
                if _is_unfinished(generated[row], limits[row]):
                    unfinished.append(slot)
                elif keep_prefixes and batch.can_drop_rows:
                    generated[row].prefix = batch.copy_prefix(slot, generated[row])
        if not unfinished or should_stop():
            break
        # Compact the batch if enough rows have finished, then run the sampled tokens.
        if batch.can_drop_rows and len(unfinished) <= COMPACT_AT * len(batch.rows):
            batch.keep_slots(unfinished)
            tokens = tokens[torch.tensor(unfinished, device=tokens.device)]
        logits = batch.forward(model, tokens)  # (R, V)
    return generated


def _is_unfinished(generated: GeneratedRow, limit: int) -> bool:
    return not generated.ended and len(generated.ids) < limit


def _prefill_in_groups(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], reserve: int, pad: int, prefix_cache: PrefixCache | None
) -> tuple[_Batch, Tensor]:
    """Prefill each prompt from where its cached prefix ends, in groups of similar length, and join the rows into one batch.

    reserve   columns to reserve for new tokens

    Returns the batch and the logits after each prompt, (R, V).
    """
    # Find the longest cached prefix of each prompt; only the suffix after it is run.
    prefix_cache = prefix_cache or PrefixCache()
    _share_prefix(model, prompts, prefix_cache)
    prefixes = [prefix_cache.longest(prompt) for prompt in prompts]
    prefilled: dict[int, CachedPrefix] = {}
    logits: dict[int, Tensor] = {}
    suffix_lengths = [len(prompt) - prefix.length for prompt, prefix in zip(prompts, prefixes, strict=True)]
    # Run the suffixes in groups of similar length; copy each row's keys and values, (heads, length, head size), out of its group.
    for group in group_by_length(suffix_lengths, TOKENS_PER_FORWARD.get(model.device.type, max(suffix_lengths))):
        result = prefill_rows(model, [prompts[row] for row in group], [prefixes[row] for row in group], pad)
        for slot, row in enumerate(group):
            prefilled[row], logits[row] = result.prefix(slot), result.logits[slot, -1]
    # Join all rows into one cache, (R, heads, T + reserve, head size) per layer, padded on the left to the longest prompt.
    rows = range(len(prompts))
    complete = [PrefixMatch(prefilled[row], len(prompts[row])) for row in rows]
    mask = left_padded([[1] * len(prompt) for prompt in prompts], 0, model.device)  # (R, T)
    cache = join_prefixes(complete, layer_count(model), reserve)
    return _Batch(prompts, list(rows), cache, mask, can_drop_rows=True), torch.stack([logits[row] for row in rows])


def _share_prefix(model: PreTrainedModel, prompts: Sequence[Sequence[int]], prefix_cache: PrefixCache) -> None:
    """Prefill the common prefix of all prompts once, if it is longer than what is cached of any one of them."""
    if len(prompts) < 2:
        return
    shared = common_prefix(prompts)[: min(map(len, prompts)) - 1]
    if len(shared) >= MIN_PREFIX_TOKENS and len(shared) > min(
        prefix_cache.longest(prompt).length for prompt in prompts
    ):
        prefix_cache.keep_shared(prefill_rows(model, [shared], [prefix_cache.longest(shared)], pad=0).prefix(0))


def _prefill_at_once(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> tuple[_Batch, Tensor]:
    """Prefill all prompts in one batch, into the model's own kind of cache. Returns the batch and the logits, (R, V)."""
    mask = left_padded([[1] * len(prompt) for prompt in prompts], 0, model.device)  # (R, T)
    cache = DynamicCache(config=model.config)
    batch = _Batch(prompts, list(range(len(prompts))), cache, mask, can_drop_rows=False)
    return batch, last_logits(model, left_padded(prompts, pad, model.device), mask, cache)[:, -1]
