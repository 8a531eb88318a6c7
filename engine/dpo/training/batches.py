"""Batches of pairs of similar length, with as many tokens as fit in memory.

The pairs of an optimizer step depend only on the seed, not on how the step is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.dpo.training.process_group import SINGLE_PROCESS, ProcessGroup

Pair = Mapping[str, Any]
"""`prompt_ids`, `chosen_ids` and `rejected_ids`, lists of token ids."""
Batch = dict[str, Any]
"""The output of TRL's collator: tensors of (2B, T), all chosen texts before all rejected ones."""


def tokens_read(pair: Pair) -> int:
    """Tokens of a pair whose prompt is read once for both replies. A common prefix of the replies counts twice."""
    return len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def batch_by_length(lengths: Sequence[int], max_tokens: int, processes: int = 1) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, each of at most `max_tokens` tokens including padding, or of one row.

    processes   that divide each batch; the limit applies to the share of each

    The longest come first, so that if memory runs out, it does so at once.
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

    All processes make the same number of passes, over pairs of similar length, because they reduce their gradients after
    the last one. A process that gets no pair of a batch reads the batch's first pair with weight 0.
    """

    collate: Callable[[list[Pair]], Batch]
    max_tokens: int
    """Maximum tokens per forward pass; so many fit in memory for the longest pairs."""
    group: ProcessGroup = SINGLE_PROCESS

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Returns `batches`, `sizes` (pairs that count in each batch) and `pairs` (in the step, over all processes)."""
        processes, rank = self.group.world_size, self.group.rank
        batches = list(batch_by_length([tokens_read(pair) for pair in pairs], self.max_tokens, processes))
        shares = [batch[rank::processes] for batch in batches]
        rows = [share or batch[:1] for share, batch in zip(shares, batches, strict=True)]
        return {
            "batches": [self.collate([pairs[index] for index in indices]) for indices in rows],
            "sizes": [len(share) for share in shares],
            "pairs": len(pairs),
        }
