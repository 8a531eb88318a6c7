"""Group rows of similar length, because padding costs as much as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TOKENS_PER_FORWARD = {"cpu": 2048, "cuda": 16384}
"""Prompt tokens per forward pass, by device type. Activations take memory, and a CPU is slower when they do not fit its caches
(1.3 instead of 1.0 seconds for 1,280 tokens, measured)."""
MAX_LENGTH_RATIO = 1.25
"""Ratio of the longest row of a group to the shortest."""
SLACK_TOKENS = 16
"""A difference in length that is always allowed."""


def group_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield groups of row indices of similar length, each with at most `most` tokens, padding included."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        full = (len(group) + 1) * lengths[row] > most
        if group and (full or lengths[row] > MAX_LENGTH_RATIO * lengths[group[0]] + SLACK_TOKENS):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
