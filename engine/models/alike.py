"""Rows of like length side by side: what is padded costs as much as what is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
"""Of prompts in one forward pass, by kind of device. Their activations take memory; on a CPU they are also slower if they
do not fit its caches (1.0 against 1.3 seconds for 1,280 tokens, measured)."""
ALIKE = 1.25
"""Prompts are read side by side when the longest has at most this many times the tokens of the shortest."""
FEW = 16
"""Tokens that do not matter."""


def alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows in groups of like length, of at most `most` tokens with their padding."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        full = (len(group) + 1) * lengths[row] > most
        if group and (full or lengths[row] > ALIKE * lengths[group[0]] + FEW):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
