"""How many prompts are generated side by side."""

from __future__ import annotations

from engine.config import Stage3Config

LARGEST = 64
"""More rows than this gain little (see bench/RESULTS.md)."""


def chosen_batch_size(config: Stage3Config) -> int:
    """What `--generation-batch-size` says, or the largest."""
    return config.generation_batch_size or LARGEST
