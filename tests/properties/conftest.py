"""Properties: what must hold for any value, tried with many. The values are the same every time, so that everybody can
reproduce a failure.
"""

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
    phases=[Phase.explicit, Phase.generate],  # failures are not minimised, because that takes minutes
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def without_syncing() -> Iterator[None]:
    """No power is cut here, and a sync for every value would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
