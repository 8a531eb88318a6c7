"""The cost of a pair by method, in replies generated and prompts read, and the number of prompts that a run needs."""

from __future__ import annotations

from math import ceil

from engine.core.config import Stage3Config

REPLIES_PER_ROUND = 2
"""Critique and revision; the draft precedes the first round."""
PROMPT_READS_PER_ROUND = 0.5
"""Tokens read for the two requests of a round, as a fraction of the prompt's length. The KV cache holds everything before them."""


def replies_per_pair(config: Stage3Config, attempts: int | None = None) -> int:
    """Replies generated for a pair in `attempts` attempts, by default in as few as possible."""
    if attempts is None:
        attempts = config.rounds if config.method == "critique-revision" else 1
    match config.method:
        case "contrast":
            return 2 * attempts
        case "best-of-n":
            return config.num_drafts
        case _:
            return 1 + REPLIES_PER_ROUND * attempts


def expected_prompts(config: Stage3Config, usable_share: float = 1.0) -> int:
    """Prompts that the run needs: --num-examples, or what --target-pairs takes at this share of usable pairs."""
    if config.target_pairs is None:
        return config.num_examples
    return ceil(config.target_pairs / max(usable_share, config.min_usable_share, 0.01))


def prompt_reads_per_pair(config: Stage3Config) -> float:
    match config.method:
        case "contrast":
            return 2.0
        case "best-of-n":
            return float(config.num_drafts)
        case _:
            return 1 + PROMPT_READS_PER_ROUND * config.rounds
