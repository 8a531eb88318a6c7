"""Random seeds for each step of each prompt, independent of order and batch."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, prompt_id: str, step: str, attempt: int) -> int:
    """A 63-bit seed that depends only on the arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}:{step}:{attempt}".encode()).digest()[:8], "big") >> 1
