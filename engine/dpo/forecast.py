"""What the long run will take: time, disk and memory, from a short run that was measured.

seconds_pairs     = batches × Σ over draft, critique, revision (prefill + tokens × seconds per decoding step)
seconds_training  = epochs × pairs × share of the longest pair × seconds of its step × (1 + 1/3 for the reference)
bytes             = pairs × bytes a record + (kept checkpoints + 1) × checkpoint + archive
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

STEPS_IN_A_CHAIN = 3
"""Draft, critique, revision."""
REPLY_MARGIN = 1.5
"""A batch ends with its longest reply; that is longer than the one reply that was measured."""
ARCHIVE_ADAPTERS = 2
"""The archive holds the adapter and the data; as much again as the adapter is room enough for the data."""


@dataclass(frozen=True)
class Measured:
    """The short run."""

    reply_tokens: float
    """Mean tokens of draft, critique and revision."""
    prefill_seconds: float
    """Reading a batch of prompts, once."""
    decode_seconds: float
    """One token of every row of a batch."""
    record_bytes: int
    step_seconds: float
    """Forward, backward and update on one pair of the longest kind."""
    longest_tokens: int
    pair_tokens: float
    """Mean tokens of prompt and reply of the pair that was made."""
    checkpoint_bytes: int
    peak_bytes: int
    """Memory at the peak: of the GPU where there is one, else resident memory of the process."""


@dataclass(frozen=True)
class Forecast:
    seconds_pairs: float
    seconds_training: float
    disk_bytes: int
    peak_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(
    measured: Measured,
    *,
    num_examples: int,
    batch_size: int,
    max_new_tokens: int,
    epochs: float,
    save_total_limit: int,
) -> Forecast:
    tokens = min(max_new_tokens, REPLY_MARGIN * measured.reply_tokens)
    batches = ceil(num_examples / batch_size)
    pairs_seconds = batches * STEPS_IN_A_CHAIN * (measured.prefill_seconds + tokens * measured.decode_seconds)
    share = min(1.0, measured.pair_tokens / max(measured.longest_tokens, 1))
    training_seconds = epochs * num_examples * share * measured.step_seconds * (1 + 1 / 3)
    disk = num_examples * 2 * measured.record_bytes + measured.checkpoint_bytes * (
        save_total_limit + 1 + ARCHIVE_ADAPTERS
    )
    return Forecast(pairs_seconds, training_seconds, int(disk), measured.peak_bytes)
