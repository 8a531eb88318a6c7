"""Replaces the real Hub with the fake one, for tests in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub

from engine import hub
from engine.hub import requests, tokens
from tests.support.fake_hub import FakeHub
from tests.support.fake_hub_push import FakeHubPush

CANARY = "hf_CanaryCanaryCanaryCanary"


def use(fake: FakeHub | FakeHubPush, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Point this process at `fake`, with short waits and its own home folder without a login."""
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", fake.endpoint)  # read from the environment at import
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # created once per process, for the Hub at that time
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr(requests, "RETRY_WAITS_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(tokens, "_remembered", [])
    for name in hub.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
