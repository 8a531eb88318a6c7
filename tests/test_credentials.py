"""Stage 3 against the Hub on localhost: what is remote, whose token it is, and what it may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine import hub
from engine.config import load_config
from engine.context import Context
from engine.errors import AccessError, NetworkError, Stage3Error
from engine.events import Check, Event
from engine.run import Run
from engine.secrets import Secret
from engine.stages import credentials
from engine.stages.base import StageResult
from tests.fake_hub import FakeHub, fake_hub

CANARY = "hf_CanaryCanaryCanaryCanary"
BASE, DATA = "google/gemma-2b-it", "Anthropic/hh-rlhf"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub where the base model is gated and everything else is as it should be; no login, an empty current folder."""
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(hub, "RETRY_WAITS_SECONDS", (0.01,))
    for name in hub.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hf/stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.chdir(tmp_path)
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        server.repos = {BASE: "ok", DATA: "ok"}
        yield server


def context(tmp_path: Path, *, token: str | None = None, **options: Any) -> Context:
    config = load_config(options, environment={})
    return Context(config, Run(tmp_path / "run"), token=Secret(token) if token else None)


def drive(context: Context) -> tuple[StageResult | Stage3Error, list[Event]]:
    """Run the stage; its result or its error, and its events, none of which shows the token."""
    events: list[Event] = []
    stage = credentials.run(context)
    while True:
        try:
            events.append(next(stage))
        except StopIteration as end:
            outcome = end.value
            break
        except Stage3Error as error:
            outcome = error
            break
    assert CANARY not in f"{outcome} {events}"
    return outcome, events


def checks(events: list[Event]) -> dict[str, str]:
    return {event.name: event.status for event in events if isinstance(event, Check)}


def test_nothing_remote_is_skipped_and_says_so(tmp_path: Path, fake: FakeHub) -> None:
    (tmp_path / "data.jsonl").touch()
    local = context(tmp_path, base_model_id=str(tmp_path), adapter_path=str(tmp_path), dataset="data.jsonl")
    result, _ = drive(local)
    assert isinstance(result, StageResult) and result.outcome == "skipped" and "no token is needed" in result.summary
    depends_on = credentials.depends_on(local)
    assert depends_on is not None
    assert {"base_model_id": str(tmp_path), "dataset": "data.jsonl"}.items() <= depends_on.items()
    assert fake.requests == []


def test_a_reward_model_is_needed_where_it_judges(tmp_path: Path, fake: FakeHub) -> None:
    here = {"base_model_id": str(tmp_path), "adapter_path": str(tmp_path), "dataset": str(tmp_path)}
    asked = context(tmp_path, **here, judge="reward-model", reward_model_id="someone/judge")
    assert [str(need) for need in credentials.remote_needs(asked.config, asked.run)] == ["reward model someone/judge"]
    assert credentials.remote_needs(context(tmp_path, **here, judge="self").config, asked.run) == ()


def test_what_is_remote_is_base_model_adapter_and_dataset(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, adapter_path="someone/stage2")
    assert [need.what for need in credentials.remote_needs(given.config, given.run)] == [
        "base model",
        "adapter",
        "dataset",
    ]
    assert credentials.depends_on(given) is None


def test_an_adapter_in_the_workspace_is_not_remote(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, adapter_path="someone/stage2")
    (tmp_path / "checkout/someone/stage2").mkdir(parents=True)
    given.run.record_stage("workspace", status="done", result={"folder": str(tmp_path / "checkout")})
    assert [need.what for need in credentials.remote_needs(given.config, given.run)] == ["base model", "dataset"]


def test_a_token_that_may_read_everything_is_kept_for_the_later_stages(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path, token=CANARY)
    result, events = drive(given)
    assert isinstance(result, StageResult) and result.facts["account"] == "someone"
    assert checks(events) == {"token": "ok", f"base model {BASE}": "ok", f"dataset {DATA}": "ok"}
    assert given.token is not None and given.token.reveal() == CANARY


def test_the_variable_is_used_where_none_is_given(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    given = context(tmp_path)
    drive(given)
    assert given.token is not None and given.token.reveal() == CANARY
    assert os.environ["HF_TOKEN"] == CANARY


def test_tokens_that_are_in_the_way_are_cleared_and_named(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_staler")
    _, events = drive(context(tmp_path, token=CANARY))
    assert "HF_TOKEN" not in os.environ and "HUGGING_FACE_HUB_TOKEN" not in os.environ
    assert "HF_TOKEN held another token" in str(events) and "hf_stale" not in str(events)


def test_a_wrong_token_stops_before_any_repository_is_asked(tmp_path: Path, fake: FakeHub) -> None:
    fake.account = "401"
    error, events = drive(context(tmp_path, token=CANARY))
    assert isinstance(error, AccessError) and error.exit_code == 4
    assert checks(events) == {"token": "failed"}
    assert len(fake.requests) == 1


def test_a_licence_that_is_not_accepted_names_the_page(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "gated"
    error, events = drive(context(tmp_path, token=CANARY))
    assert isinstance(error, AccessError) and f"{fake.endpoint}/{BASE}" in error.what_to_do
    assert checks(events) == {"token": "ok", f"base model {BASE}": "failed"}


def test_without_a_token_a_gated_model_asks_for_one_in_every_way_there_is(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "gated"
    error, _ = drive(context(tmp_path))
    assert isinstance(error, AccessError)
    for way in ("HF_TOKEN", "--token-stdin", "--token-file", "hf auth login", "wizard"):
        assert way in error.what_to_do


def test_without_a_token_public_repositories_pass(tmp_path: Path, fake: FakeHub) -> None:
    given = context(tmp_path)
    result, events = drive(given)
    assert isinstance(result, StageResult) and "no token is needed" in result.summary
    assert checks(events)["token"] == "skipped" and given.token is None


def test_a_hub_that_does_not_answer_is_no_token_trouble(tmp_path: Path, fake: FakeHub) -> None:
    fake.repos[BASE] = "503"
    error, _ = drive(context(tmp_path))
    assert isinstance(error, NetworkError) and error.exit_code == 5


def test_offline_passes_with_what_is_in_the_cache_and_names_what_is_not(
    tmp_path: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "hf/hub/models--google--gemma-2b-it/snapshots/abc").mkdir(parents=True)
    error, _ = drive(context(tmp_path))
    assert isinstance(error, NetworkError) and DATA in error.what and BASE not in error.what
    (tmp_path / "hf/hub/datasets--Anthropic--hh-rlhf/snapshots/abc").mkdir(parents=True)
    result, _ = drive(context(tmp_path))
    assert isinstance(result, StageResult) and "cache" in result.summary
    assert fake.requests == []
