"""The timed batch of preflight, also on a machine that is busy with something else."""

from __future__ import annotations

from typing import Any

import pytest

from engine.models.generation.sampling import SamplingSettings
from engine.pairs.generation.prompts import Prompt
from engine.preflight import timing

PROMPTS = [Prompt("a", [{"role": "user", "content": "How do I fix a tap?"}])]


class Backend:
    def clear_cache(self) -> None:
        pass

    def reply(self, conversations: Any, settings: SamplingSettings, seeds: Any) -> None:
        pass


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> tuple[float, float]:
    durations = iter(seconds)
    monkeypatch.setattr(timing, "_seconds", lambda function: next(durations))
    return timing.time_batch(Backend(), PROMPTS)  # type: ignore[arg-type]


def test_the_time_per_token_is_that_of_the_additional_tokens(monkeypatch: pytest.MonkeyPatch):
    assert timed(monkeypatch, 2.0, 2.0 + timing.PROBE_TOKENS * 0.5) == (2.0, 0.5)


def test_tokens_are_never_free_even_if_the_longer_reply_was_faster(monkeypatch: pytest.MonkeyPatch):
    assert timed(monkeypatch, 199.0, 180.0) == (199.0, 180.0 / (1 + timing.PROBE_TOKENS))
