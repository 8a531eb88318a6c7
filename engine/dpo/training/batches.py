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
"""What TRL's collator makes of pairs: tensors of (2B, T), chosen before rejected."""


def tokens_read(pair: Pair) -> int:
    """Tokens of a pair whose prompt is read once for both replies; what they share beyond it is not looked for."""
    return len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def cut_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """All indices in batches of like length, longest first, each of at most `most` tokens with its padding, or of one.

    The longest come first so that memory that runs out does so at once.
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
    """The pairs of one optimizer step as batches for the forward passes of that step."""

    collate: Callable[[list[Pair]], Batch]
    most: int
    """Tokens of a forward pass: what was found to fit for the longest pairs."""

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[Batch]]:
        groups = cut_by_length([tokens_read(pair) for pair in pairs], self.most)
        return {"batches": [self.collate([pairs[index] for index in group]) for group in groups]}
