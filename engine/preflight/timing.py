"""Time a batch: reading the prompts (prefill), and generating (decoding)."""

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

    def generate(tokens: int) -> None:
        backend.clear_cache()  # so that every call reads the prompts
        backend.reply(conversations, SamplingSettings(tokens), seeds)

    generate(1)  # warm-up: the first batch of a shape is slower
    short, long = (_seconds(lambda n=n: generate(n)) for n in (1, 1 + PROBE_TOKENS))
    if long <= short:  # a busy machine: count everything as decoding, which overestimates it instead of reporting zero
        return short, long / (1 + PROBE_TOKENS)
    return short, (long - short) / PROBE_TOKENS


def _seconds(function: Any) -> float:
    started = time.monotonic()
    function()
    return time.monotonic() - started
