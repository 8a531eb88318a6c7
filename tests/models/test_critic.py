"""Three roles: a local policy drafts, a critic on a server criticises and revises, and a judge on another server compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.core.config import load_config
from engine.core.errors import ConfigError
from engine.core.generators import drain
from engine.demo.preset import ASSETS, demo_defaults
from engine.models.backend import PolicyAndCritic, load_backend
from engine.models.generation.sampling import Reply, SamplingSettings
from engine.pairs.generation.critique_revision import make_records
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import load_prompts
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.exam import shipped_exam
from engine.pairs.judges.examined_judge import examined_judge
from engine.pairs.principles.constitution import load_constitution
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.stages.load_judge import judge_loader
from tests.conftest import run_stage
from tests.support.fake_server import Answer, FakeServer, choices, fake_server

KEY = "sk-critic-0123456789abcdef"
REVISED = "Put a damp cloth on it for an hour, and it will be as good as new in the morning."


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        running.models = Answer(200, {"data": [{"id": "critic"}]})
        yield running


def text_answer(text: str) -> Answer:
    return Answer(200, {**choices(message={"role": "assistant", "content": text}), "usage": {"completion_tokens": 9}})


def critic_config(server: FakeServer, **more: Any) -> Any:
    chosen = {"critic_url": server.url, "critic_model": "critic", "critic_api_key_env": "CRITIC_KEY", **more}
    return load_config(chosen, preset=demo_defaults(), environment={})


def test_the_policy_drafts_locally_and_the_critic_writes_the_rest_with_its_own_token(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    config = critic_config(server)
    revise = {principle.revision_request for principle in load_constitution(config.constitution).principles}
    server.mood_for = lambda text: text_answer(REVISED if text in revise else "The response is rude.")
    backend = load_backend(config, ASSETS / "adapter", StopToken(), None)
    assert isinstance(backend, PolicyAndCritic)
    prompts, settings = load_prompts(config, None)[:3], GenerationSettings.of(config)
    records = drain(make_records(prompts, backend, settings))
    local = load_backend(
        critic_config(server, critic_url=None, critic_model=None), ASSETS / "adapter", StopToken(), None
    )
    drafts = local.reply([p.messages for p in prompts], SamplingSettings(64), [1, 2, 3])
    assert [record.critic_notes for record in records] == ["The response is rude."] * 3
    assert {record.revised_response for record in records} == {REVISED} and len(drafts) == 3
    assert all(record.base_response and record.base_response not in (REVISED, "") for record in records)
    requests = server.requests
    assert {request.authorization for request in requests} == {f"Bearer {KEY}"}
    assert {request.body["model"] for request in requests} == {"critic"}
    assert len(requests) == 2 * sum(record.attempts for record in records)
    first = next(request for request in requests if request.body["messages"][-2]["content"] == records[0].base_response)
    assert first.body["messages"][-2]["role"] == "assistant"
    assert backend.tokens > 9 * len(requests)


def test_a_critic_is_checked_without_a_note_that_it_is_another_model(server: FakeServer):
    config = critic_config(server)
    backend = load_backend(config, ASSETS / "adapter", StopToken(), None)
    notes = backend.check(SamplingSettings(8))
    assert server.requests and not any("chat template" in note for note in notes)


def test_a_critic_without_a_model_is_refused_before_a_model_is_loaded(server: FakeServer):
    with pytest.raises(ConfigError, match="--critic-url needs --critic-model"):
        load_backend(critic_config(server, critic_model=None), ASSETS / "nowhere", StopToken(), None)


def test_another_critic_changes_the_identity_of_records_and_another_address_does_not(server: FakeServer):
    def identity(**more: Any) -> str:
        config = critic_config(server, **more)
        run = Run(ASSETS)
        run.manifest["stages"] = {"adapter": {"result": {"tensors_sha256": "a"}}}
        return RecordIdentity.of(config, GenerationSettings.of(config), run.results).settings

    assert identity() == identity(critic_url="http://elsewhere/v1") != identity(critic_model="another")
    assert identity() != identity(critic_url=None, critic_model=None)


class Canned:
    """A backend with a context length."""

    tokens = 0

    def __init__(self, context_length: int | None) -> None:
        self.context_length = context_length

    def reply(self, *_: object) -> list[Reply]:
        raise AssertionError("no reply is requested")

    length = batch_size = check = warnings = clear_cache = reply  # type: ignore[assignment]


@pytest.mark.parametrize(("policy", "critic", "expected"), [(None, None, None), (None, 2048, 2048), (4096, 2048, 2048)])
def test_the_shorter_context_applies_to_both(policy: int | None, critic: int | None, expected: int | None):
    assert PolicyAndCritic(Canned(policy), Canned(critic)).context_length == expected  # type: ignore[arg-type]


def test_a_judge_on_a_server_of_its_own_takes_the_exam_there(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, context: Callable[..., Context]
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    better = [item.better for item in shipped_exam().items]

    def judge_answer(text: str) -> Answer:
        a, _, _ = text.partition("(A) ")[2].partition("\n\n(B) ")
        return text_answer("A" if a in better else "B")

    server.mood_for = judge_answer
    stage_context = context(
        **{
            **demo_defaults(),
            "judge": "auto",
            "judge_url": server.url,
            "judge_model": "wise",
            "judge_api_key_env": "JUDGE_KEY",
        }
    )
    _, found = run_stage(
        examined_judge(stage_context.config, stage_context.run, judge_loader(stage_context), stage_context.stop)
    )
    assert found.trusted is not None and found.trusted.right == 60 and found.trusted.on_the_letters == 1.0
    assert found.trusted.judge == "server wise" and found.trusted.first_place_chosen == 0.5
    assert len(server.requests) == 120 and {each.authorization for each in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in "".join(path.read_text() for path in stage_context.run.cache.rglob("*.jsonl"))
