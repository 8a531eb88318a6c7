"""What one pair takes, by the method that makes it: replies, and readings of its prompt; and how many prompts a run takes."""

from __future__ import annotations

from math import ceil

from engine.core.config import Stage3Config

REPLIES_IN_A_ROUND = 2
"""Critique and revision; the draft comes before the first round."""
READINGS_IN_A_ROUND = 0.5
"""Of a prompt's length: the two requests of a round. What was read before them is kept."""


def replies_of_a_pair(config: Stage3Config, attempts: int | None = None) -> int:
    """Of one that was made in so many attempts; without them, as few as can be."""
    if attempts is None:
        attempts = config.rounds if config.method == "critique-revision" else 1
    match config.method:
        case "contrast":
            return 2 * attempts
        case "best-of-n":
            return config.num_drafts
        case _:
            return 1 + REPLIES_IN_A_ROUND * attempts


def prompts_expected(config: Stage3Config, usable_share: float = 1.0) -> int:
    """That the run takes: --num-examples, or as many as --target-pairs needs at this share of usable ones."""
    if config.target_pairs is None:
        return config.num_examples
    return ceil(config.target_pairs / max(usable_share, config.min_usable_share, 0.01))


def readings_of_a_pair(config: Stage3Config) -> float:
    match config.method:
        case "contrast":
            return 2.0
        case "best-of-n":
            return float(config.num_drafts)
        case _:
            return 1 + READINGS_IN_A_ROUND * config.rounds
