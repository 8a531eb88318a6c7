"""Stage pairs on two servers, one of which dies and comes back: nothing is lost or made twice, and the server that answers
does not change the record. Most tests use fakes; the slow one runs two real `transformers serve`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import ExitCode, NetworkError
from engine.core.events import Event, Message, PairFailed, PairMade
from engine.core.generators import drain
from engine.demo.preset import ASSETS, demo_defaults
from engine.models.server.pool import ServerPool
from engine.pairs.generation.prompts import load_prompts
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.stages import pairs as stage
from tests.conftest import run_stage
from tests.support.fake_server import Answer, FakeServer, fake_server
from tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.real_server import real_server
from tests.support.served_policy import merged_policy, serve_command

BROKEN = Answer(500, {"error": {"message": "CUDA error: out of memory"}})
BUSY = Answer(429, {"error": "slow down"}, {"Retry-After": "1"})

MakeContext = Callable[..., Context]


@pytest.fixture
def at_work(config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeContext:
    """A run of the demo's prompts whose adapter is verified."""

    def make(*urls: str, in_folder: str = "run", **options: Any) -> Context:
        given = {"server_url": urls, "temperature": 0.0, "max_attempts": 1, "min_usable_share": 0.0, **options}
        folder = tmp_path / in_folder
        made = Context(config=config(**{**demo_defaults(), **given, "output_dir": folder}), run=Run(folder))
        made.run.record_stage("adapter", status="done", result={"tensors_sha256": "a", "base_model_id": "b"})
        return made

    monkeypatch.setattr(stage, "adapter_folder", lambda *_: ASSETS / "adapter")
    return make


def records(context: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.run / layout.PAIRS_JSONL).read_text().splitlines()]


def texts_of(rows: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    fields = ("status", "base_response", "critic_notes", "revised_response")
    return {row["id"]: tuple(row[field] for field in fields) for row in rows}


# -- fakes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeServer]]:
    monkeypatch.setattr(ServerPool, "backoff_seconds", lambda self, number: 0.02 * number)
    with ExitStack() as stack:
        servers = [stack.enter_context(fake_server()) for _ in range(2)]
        for server in servers:
            server.usage, server.seconds_for = None, lambda text: 0.002
        yield servers


def test_one_dies_and_comes_back_one_is_busy_and_one_prompt_always_fails(two: list[FakeServer], at_work: MakeContext):
    context = at_work(*(server.url for server in two), server_model="ours", num_examples=40, server_concurrency=3)
    emitted: list[Event] = []
    context.emit = emitted.append
    poisoned = load_prompts(context.config, None)[30].messages[-1]["content"]
    back_at: list[float] = []

    def fails(text: str) -> str | Answer:
        return BROKEN if text == poisoned else "ok"

    def first(text: str) -> str | Answer:
        if len(two[0].requests) > 12 and not back_at:
            back_at.append(time.monotonic() + 0.3)
        down = bool(back_at) and time.monotonic() < back_at[0]
        return "drop" if down else fails(text)

    def second(text: str) -> str | Answer:
        return Answer(429, headers={"Retry-After": "0.05"}) if len(two[1].requests) % 17 == 9 else fails(text)

    two[0].mood_for, two[1].mood_for = first, second
    events, _ = run_stage(stage.run(context))
    rows = records(context)
    assert len(rows) == 40 == len({row["id"] for row in rows})
    [failed] = [row for row in rows if row["status"] == "failed on the server"]
    assert failed["prompt"].endswith(poisoned) and "The server at http" in failed["critic_notes"]
    assert Counter(event.id for event in events if isinstance(event, PairMade | PairFailed)) == {
        row["id"]: 1 for row in rows
    }
    words = [event.text for event in emitted if isinstance(event, Message)]
    assert any(two[0].url in text and "1 of 2 servers remain" in text for text in words)
    assert f"The server at {two[0].url} answers again." in words
    assert len(two[1].requests) > 26, "it was busy twice"

    # Which server answered changes nothing: one alone makes the same records.
    two[1].mood_for = fails
    alone = at_work(two[1].url, server_model="ours", num_examples=40, in_folder="alone")
    run_stage(stage.run(alone))
    assert texts_of(records(alone)) | {failed["id"]: ()} == texts_of(rows) | {failed["id"]: ()}


def test_if_all_servers_are_down_the_stage_ends_and_continues_later(two: list[FakeServer], at_work: MakeContext):
    context = at_work(*(server.url for server in two), server_model="ours", num_examples=60, server_concurrency=1)
    for server in two:
        server.mood_for = lambda text, server=server: BROKEN if len(server.requests) > 30 else "ok"  # type: ignore[misc]
    with pytest.raises(NetworkError, match="None of the 2 servers responds") as caught:
        run_stage(stage.run(context))
    assert caught.value.exit_code == ExitCode.NETWORK
    before = texts_of(records(context))
    assert 0 < len(before) < 60
    asked_before = len(two[1].requests)
    two[1].mood_for = None
    with_one = at_work(two[1].url, server_model="ours", num_examples=60)
    _, _ = run_stage(stage.run(with_one))
    rows = records(with_one)
    assert len(rows) == 60 == len({row["id"] for row in rows})
    assert {key: texts_of(rows)[key] for key in before} == before, "with fewer servers, too"
    assert len(two[1].requests) - asked_before <= 3 * (60 - len(before) + 8) + 8


# -- two real servers ---------------------------------------------------------------------------------------------------


class Served:
    """`transformers serve` behind a proxy that keeps its address when the server is killed and restarted."""

    def __init__(self, model: Path, fault: Fault, name: str) -> None:
        self._model, self._name = model, name
        self._stack = ExitStack()
        self.proxy: FaultyProxy = self._stack.enter_context(faulty_proxy("http://127.0.0.1:9/v1", fault))
        self._server = ExitStack()
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        log = self._model.parent / f"{self._name}-{self.starts}.log"
        address = self._server.enter_context(real_server(serve_command(self._model), "/health", log))
        self.proxy.behind = f"{address}/v1"

    def kill(self) -> None:
        self._server.close()

    def close(self) -> None:
        self._server.close()
        self._stack.close()


@pytest.mark.slow
def test_two_real_servers_of_which_one_is_killed_and_started_again(
    tmp_path: Path, at_work: MakeContext, monkeypatch: pytest.MonkeyPatch
):
    model = merged_policy(tmp_path / "policy")
    counted, poison = Counter[str](), threading.Event()
    poisoned: list[str] = []

    def fault_of(name: str) -> Fault:
        def fault(body: dict[str, Any]) -> Answer | None:
            text = body["messages"][0]["content"]
            counted[name] += 1
            if poison.is_set() and not poisoned:
                poisoned.append(text)
            if text in poisoned:
                return BROKEN
            return BUSY if name == "a" and counted[name] % 25 == 0 else None

        return fault

    a, b = Served(model, fault_of("a"), "a"), Served(model, fault_of("b"), "b")
    try:
        a.start()
        b.start()
        context = at_work(a.proxy.url, b.proxy.url, server_model=str(model), num_examples=160, server_concurrency=4)
        emitted: list[Event] = []
        context.emit = emitted.append
        killer = threading.Thread(target=kill_and_start, args=(b, poison), daemon=True)
        killer.start()
        run_stage(stage.run(context))
        killer.join(timeout=60)
    finally:
        a.close()
        b.close()
    rows = records(context)
    assert len(rows) == 160 == len({row["id"] for row in rows})
    [failed] = [row for row in rows if row["status"] == "failed on the server"]
    assert failed["prompt"].endswith(poisoned[0][-40:]) and "out of memory" in failed["critic_notes"]
    assert a.proxy.statuses[429] >= 3 and b.proxy.statuses[502] >= 1 and b.starts == 2
    assert f"The server at {b.proxy.url} answers again." in [e.text for e in emitted if isinstance(e, Message)]
    assert texts_of(rows) | {failed["id"]: ()} == locally(context) | {failed["id"]: ()}


def kill_and_start(server: Served, poison: threading.Event) -> None:
    """Kill the server after its fortieth response, and restart it."""
    while server.proxy.statuses[200] < 40:
        time.sleep(0.02)
    poison.set()
    server.kill()
    server.start()


def locally(context: Context) -> dict[str, tuple[str, ...]]:
    """The texts of the same records by the local backend, greedy."""
    from engine.models.local_backend import load_stage2_backend
    from engine.pairs.generation.methods import record_maker
    from engine.pairs.generation.settings import GenerationSettings

    config, settings = context.config, GenerationSettings.of(context.config)
    backend = load_stage2_backend(config, ASSETS / "adapter", StopToken(), None)
    make = record_maker(backend, settings, None, StopToken())
    return texts_of([one.as_dict() for one in drain(make(load_prompts(config, None)))])
