"""What a model has read, kept, so that it is not read again.

Draft, critique and revision share their conversation, and worked examples stand before every critique. Attention over
kept keys and values is the same sum as attention over newly computed ones (servers call it automatic prefix caching;
Kwon et al. 2023, "Efficient Memory Management for LLM Serving with PagedAttention", section 4.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORTH_KEEPING = 16
"""Tokens. A shorter beginning (the first tokens of every template) is read again, which costs less."""


@dataclass(frozen=True)
class CachedPrefix:
    """Tokens that were read, and what each layer keeps of them."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    """(keys, values) of each layer, both (heads, tokens, head size)."""


@dataclass(frozen=True)
class PrefixMatch:
    """The first `length` tokens of `read`; nothing if `length` is 0."""

    read: CachedPrefix | None = None
    length: int = 0


class PrefixCache:
    """The rows of the last call, and the beginning that the rows of a call had in common."""

    def __init__(self) -> None:
        self._rows: list[CachedPrefix] = []
        self._shared: CachedPrefix | None = None

    def keep(self, rows: Sequence[CachedPrefix]) -> None:
        """Remember these rows in place of those of the call before."""
        self._rows = list(rows)

    def share(self, read: CachedPrefix) -> None:
        """Remember what many rows begin with, until there is another such beginning."""
        self._shared = read

    def forget(self) -> None:
        self._rows, self._shared = [], None

    def longest(self, ids: Sequence[int]) -> PrefixMatch:
        """The longest beginning of `ids` that was read. The last token is always left to read: its scores are wanted."""
        best = PrefixMatch()
        for read in (*self._rows, *([self._shared] if self._shared else [])):
            length = min(common_length(read.ids, ids), len(ids) - 1)
            if length >= WORTH_KEEPING and length > best.length:
                best = PrefixMatch(read, length)
        return best


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many tokens two rows, or characters two texts, begin with in common."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def common_beginning(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all rows begin with: the least and the greatest of them are the first to differ."""
    least, greatest = min(map(tuple, rows)), max(map(tuple, rows))
    return least[: common_length(least, greatest)]
