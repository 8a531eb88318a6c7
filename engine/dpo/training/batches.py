"""Batches of pairs of similar length, with as many tokens as fit in memory.

The seed chooses the pairs of an optimizer step, however the step is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pair = Mapping[str, Any]
"""`prompt_ids`, `chosen_ids` and `rejected_ids`, lists of token ids."""
Batch = dict[str, Any]
"""The output of TRL's collator: tensors of (2B, T), all chosen before all rejected."""


def tokens_read(pair: Pair) -> int:
    """Tokens of a pair whose prompt is read once for both replies. A common prefix of the replies is not considered."""
    return len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def cut_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, each of at most `most` tokens including padding, or of one row.

    The longest come first, so that if memory runs out it does so at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class StepCollator:
    """Splits the pairs of one optimizer step into batches for its forward passes."""

    collate: Callable[[list[Pair]], Batch]
    most: int
    """Tokens per forward pass, as found to fit for the longest pairs."""

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[Batch]]:
        groups = cut_by_length([tokens_read(pair) for pair in pairs], self.most)
        return {"batches": [self.collate([pairs[index] for index in group]) for group in groups]}
