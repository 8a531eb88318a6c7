"""Batches of pairs of similar length, with as many tokens as fit in memory.

The seed chooses the pairs of an optimizer step, however the step is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.dpo.training.process_group import SINGLE_PROCESS, ProcessGroup

Pair = Mapping[str, Any]
"""`prompt_ids`, `chosen_ids` and `rejected_ids`, lists of token ids."""
Batch = dict[str, Any]
"""The output of TRL's collator: tensors of (2B, T), all chosen before all rejected."""


def tokens_read(pair: Pair) -> int:
    """Tokens of a pair whose prompt is read once for both replies. A common prefix of the replies is not considered."""
    return len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def cut_by_length(lengths: Sequence[int], max_tokens: int, processes: int = 1) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, each of at most `max_tokens` tokens including padding, or of one row.

    processes   that divide each batch among themselves; the limit holds for the share of each

    The longest come first, so that if memory runs out it does so at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if len(batch) >= processes and (len(batch) // processes + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class StepCollator:
    """Splits the pairs of one optimizer step into batches for its forward passes, and takes the share of one process.

    All processes make the same number of passes, over pairs of the same length, because they add up their gradients after the
    last one. A process that has no pair of a batch reads its first one with the weight 0.
    """

    collate: Callable[[list[Pair]], Batch]
    max_tokens: int
    """Tokens per forward pass, as found to fit for the longest pairs."""
    group: ProcessGroup = SINGLE_PROCESS

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """`batches`, `sizes` (pairs of each batch that count) and `pairs` (of the step, in all processes)."""
        processes, rank = self.group.world_size, self.group.rank
        batches = list(cut_by_length([tokens_read(pair) for pair in pairs], self.max_tokens, processes))
        shares = [batch[rank::processes] for batch in batches]
        rows = [share or batch[:1] for share, batch in zip(shares, batches, strict=True)]
        return {
            "batches": [self.collate([pairs[index] for index in indices]) for indices in rows],
            "sizes": [len(share) for share in shares],
            "pairs": len(pairs),
        }
