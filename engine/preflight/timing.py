"""Time a batch: reading the prompts, and generating."""

from __future__ import annotations

import time
from typing import Any

from engine.models.backend import Backend
from engine.models.generation.sampling import SamplingSettings
from engine.pairs.generation.prompts import Prompt

PROBE_TOKENS = 8
"""Reply length of the timed batch."""


def time_batch(backend: Backend, prompts: list[Prompt]) -> tuple[float, float]:
    """(seconds to read the prompts, seconds per generated token) of a batch."""
    conversations = [prompt.messages for prompt in prompts]
    seeds = list(range(len(prompts)))

    def ask(tokens: int) -> None:
        backend.clear_cache()  # so that reading is timed
        backend.reply(conversations, SamplingSettings(tokens), seeds)

    ask(1)  # warm-up: the first batch of a shape is slower
    one, many = (_seconds(lambda n=n: ask(n)) for n in (1, 1 + PROBE_TOKENS))
    if many <= one:  # a busy machine: all of it counts as decoding, which is too much rather than nothing
        return one, many / (1 + PROBE_TOKENS)
    return one, (many - one) / PROBE_TOKENS


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
