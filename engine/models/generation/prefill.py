"""Prefill: run prompts through the model in one forward pass, each row from where its cached prefix ends.

Letters for shapes: R rows, T columns (tokens, padding included), V vocabulary. Imports torch; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from engine.models.generation.kv_cache import cache_argument, copy_row, join_prefixes, layer_count
from engine.models.generation.prefix_cache import CachedPrefix, PrefixMatch


@dataclass(frozen=True)
class PrefilledRows:
    """Rows that were prefilled in one batch."""

    ids: Sequence[Sequence[int]]
    cache: Cache
    mask: Tensor
    """(R, T) int: 1 for a token, 0 for padding."""
    logits: Tensor
    """The logits after the last N tokens of each row, (R, N, V)."""

    def prefix(self, row: int) -> CachedPrefix:
        """A copy of the keys and values of `row`."""
        return copy_row(self.cache, row, self.ids[row], self.mask[row].nonzero().squeeze(-1))


def prefill_rows(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], prefixes: Sequence[PrefixMatch], pad: int, keep: int = 1
) -> PrefilledRows:
    """Run the suffix of each row, the tokens after its cached prefix.

    Two rows, the first with a cached prefix of two tokens, the second without (. is padding, lower case is cached):

        prefix   suffix       mask
        a b      C D E        1 1  1 1 1
        . .      . F G        0 0  0 1 1

    keep   N, the number of last tokens whose logits are kept
    """
    suffixes = [row[prefix.length :] for row, prefix in zip(rows, prefixes, strict=True)]
    cache = join_prefixes(prefixes, layer_count(model), max(map(len, suffixes)))
    # Both parts are padded on the left, and cover the columns of the cache and of the suffixes: (R, T) together.
    longest_prefix = max(prefix.length for prefix in prefixes)
    prefix_mask = left_padded([[1] * prefix.length for prefix in prefixes], 0, model.device, longest_prefix)
    suffix_mask = left_padded([[1] * len(suffix) for suffix in suffixes], 0, model.device)
    mask = torch.cat([prefix_mask, suffix_mask], dim=1)
    logits = last_logits(model, left_padded(suffixes, pad, model.device), mask, cache, keep)
    return PrefilledRows(rows, cache, mask, logits)


def last_logits(model: PreTrainedModel, tokens: Tensor, mask: Tensor, cache: Cache, keep: int = 1) -> Tensor:
    """Run `tokens` (R, N), the last N columns of `mask` (R, T); returns the logits after the last `keep`, (R, keep, V)."""
    output = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions_of(mask)[:, -tokens.shape[1] :],
        use_cache=True,
        logits_to_keep=keep,
        **cache_argument(model, cache),
    )
    logits: Tensor = output.logits[:, -keep:]
    return logits


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token of `mask`, not counting padding, (R, T) int."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def left_padded(rows: Sequence[Sequence[int]], filler: int, device: torch.device, width: int | None = None) -> Tensor:
    """The rows aligned on the right, (R, width) int; by default as wide as the longest."""
    width = max(map(len, rows)) if width is None else width
    return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
