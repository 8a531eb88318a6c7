"""A cache of keys and values for prefixes that the model has already processed.

Draft, critique and revision share one conversation, and worked examples precede every critique. Attention over cached keys and
values gives the same result as over newly computed ones (servers call this automatic prefix caching; Kwon et al. 2023,
"Efficient Memory Management for LLM Serving with PagedAttention", section 4.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MIN_PREFIX_TOKENS = 16
"""Shorter prefixes (the first tokens of every template) are cheaper to compute again."""


@dataclass(frozen=True)
class CachedPrefix:
    """The tokens of a prefix, with their keys and values."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    """(keys, values) per layer, both (heads, T, head size)."""


@dataclass(frozen=True)
class PrefixMatch:
    """The first `length` tokens of `cached`; no match if `length` is 0."""

    cached: CachedPrefix | None = None
    length: int = 0


class PrefixCache:
    """Holds the rows of the last call, and the most recent prefix that all rows of a call shared."""

    def __init__(self) -> None:
        self._rows: list[CachedPrefix] = []
        self._shared: CachedPrefix | None = None

    def keep_rows(self, rows: Sequence[CachedPrefix]) -> None:
        """Replace the rows of the previous call."""
        self._rows = list(rows)

    def keep_shared(self, cached: CachedPrefix) -> None:
        """Keep a shared prefix until the next one replaces it."""
        self._shared = cached

    def clear(self) -> None:
        self._rows, self._shared = [], None

    def longest(self, ids: Sequence[int]) -> PrefixMatch:
        """The longest cached prefix of `ids`, not counting its last token, whose logits are always needed."""
        best = PrefixMatch()
        for cached in (*self._rows, *([self._shared] if self._shared else [])):
            length = min(common_prefix_length(cached.ids, ids), len(ids) - 1)
            if length >= MIN_PREFIX_TOKENS and length > best.length:
                best = PrefixMatch(cached, length)
        return best


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the common prefix of two rows or texts."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def common_prefix(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """The common prefix of all rows: that of the smallest and the largest in lexical order."""
    smallest, largest = min(map(tuple, rows)), max(map(tuple, rows))
    return smallest[: common_prefix_length(smallest, largest)]
