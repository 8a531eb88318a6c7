"""Properties: what must hold for any value, tried with many. The same values every time, so that a failure is one for everybody."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],  # a failure as it was found: to make it smaller takes minutes
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def without_syncing() -> Iterator[None]:
    """No power is cut here, and a sync for every value would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
