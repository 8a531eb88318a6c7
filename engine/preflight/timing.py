"""How long a batch takes to read and to generate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from engine.models.backend import Backend
from engine.models.generation.sampling import SamplingSettings
from engine.pairs.generation.prompts import Prompt

if TYPE_CHECKING:
    pass


PROBE_TOKENS = 8
"""Length of the replies of the batch that is timed."""


def time_batch(backend: Backend, prompts: list[Prompt]) -> tuple[float, float]:
    """(seconds to read the prompts, seconds per further token), of a batch."""
    conversations = [prompt.messages for prompt in prompts]
    seeds = list(range(len(prompts)))

    def ask(tokens: int) -> None:
        backend.clear_cache()  # what was read is read again: its time is wanted
        backend.reply(conversations, SamplingSettings(tokens), seeds)

    ask(1)  # the first batch of a shape pays for more than itself
    one, many = (_seconds(lambda n=n: ask(n)) for n in (1, 1 + PROBE_TOKENS))
    decode = max((many - one) / PROBE_TOKENS, 1e-4)
    return one, decode


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
