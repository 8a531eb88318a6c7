"""A set of 64-bit hashes in 13 to 27 bytes each: what is remembered of every pair, where Python's own set takes 80."""

from __future__ import annotations

from array import array
from hashlib import blake2b

_FIRST_SIZE = 1 << 10
"""Slots; a power of two, so that a mask finds one."""


def hash_of(*texts: str) -> int:
    """64 bits of the texts, the same in every process; never 0. Where one text ends and the next begins matters."""
    raw = "".join([f"{len(text)}:{text}" for text in texts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little") or 1


class Hashes:
    """Open addressing in one array; 0 is an empty slot."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SIZE))
        self._mask = _FIRST_SIZE - 1
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, value: int) -> bool:
        """Whether `value` (not 0) was not there yet; now it is."""
        slot = self._slot(value)
        if self._slots[slot]:
            return False
        self._slots[slot] = value
        self._count += 1
        if self._count * 5 > len(self._slots) * 3:
            self._double()
        return True

    def _slot(self, value: int) -> int:
        """Where `value` stands, or would."""
        slots, mask = self._slots, self._mask
        slot = value & mask
        while (found := slots[slot]) and found != value:
            slot = (slot + 1) & mask
        return slot

    def _double(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        self._mask = len(self._slots) - 1
        for value in old:
            if value:
                self._slots[self._slot(value)] = value
