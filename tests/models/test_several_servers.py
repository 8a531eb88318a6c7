"""Several servers of one model, over real sockets: requests are distributed, servers left out and readmitted, and every request is
answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from engine.core.errors import AccessError, ExitCode, NetworkError
from engine.core.events import Event, Message, Servers
from engine.models.server.address import ServerAddress, server_address
from engine.models.server.api import TRIES, ChatRequest, ChatResponse
from engine.models.server.client import CONTROL, ServerClient
from engine.models.server.pool import MAX_WAIT_SECONDS, ServerPool
from engine.run.stop import StopToken
from tests.support.fake_server import Answer, FakeServer, fake_server

BROKEN = Answer(500, {"error": {"message": "CUDA error: an illegal memory access"}})
SHORT = 0.02
"""Factor for waits, so that backing off takes no time here."""


@pytest.fixture
def two() -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(fake_server()) for _ in range(2)]


def client_of(servers: Sequence[FakeServer | str], **more: Any) -> ServerClient:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    addresses = [server_address(url, {}) for url in urls]

    async def sleep(seconds: float) -> None:
        import asyncio

        await asyncio.sleep(seconds * SHORT)

    given = {"concurrency": 4, "timeout_seconds": 5.0, "sleep": sleep, **more}
    return ServerClient(addresses, "ours", StopToken(), **given)


def send(client: ServerClient, *texts: str, **more: Any) -> list[ChatResponse]:
    return client.send([ChatRequest([{"role": "user", "content": text}], 8) for text in texts], **more)


def texts(number: int) -> list[str]:
    return [f"question {i}" for i in range(number)]


def each_answered(responses: Sequence[ChatResponse], questions: Sequence[str]) -> bool:
    """Whether each response answers its own question: none is lost or duplicated."""
    return [response.text for response in responses] == [f"you said: {text}\n" for text in questions]


def received(server: FakeServer) -> Counter[str]:
    return Counter(request.body["messages"][-1]["content"] for request in server.requests)


def test_requests_are_distributed_and_each_is_answered_once(two: list[FakeServer]):
    for server in two:
        server.seconds_for = lambda text: 0.01
    questions = texts(40)
    assert each_answered(send(client_of(two), *questions), questions)
    first, second = map(received, two)
    assert first + second == Counter(questions) and min(first.total(), second.total()) >= 15
    assert all(2 <= server.most_at_once <= 4 for server in two), "the limit applies to each of them"


def test_the_slower_server_gets_fewer(two: list[FakeServer]):
    two[0].seconds_for = lambda text: 0.3
    two[1].seconds_for = lambda text: 0.005
    questions = texts(40)
    assert each_answered(send(client_of(two), *questions), questions)
    assert len(two[0].requests) < len(two[1].requests) / 2


def test_an_unreachable_server_is_left_out_and_the_other_answers_everything(two: list[FakeServer]):
    events: list[Event] = []
    gone = two[0].url
    two[0].close()
    questions = texts(20)
    client = client_of([gone, two[1]], emit=events.append)
    assert each_answered(send(client, *questions), questions)
    assert received(two[1]) == Counter(questions)
    [message] = [event for event in events if isinstance(event, Message)]
    assert message.level == "warning" and gone in message.text and "1 of 2 servers remain" in message.text
    assert [server.state for server in client.pool.servers] == ["out", "in"]


def test_a_server_that_dies_loses_no_request(two: list[FakeServer]):
    questions = texts(60)
    two[0].mood_for = lambda text: "drop" if len(two[0].requests) > 8 else "ok"
    two[0].models = Answer(503)  # so it is not readmitted
    two[1].seconds_for = lambda text: 0.005
    client = client_of(two)
    assert each_answered(send(client, *questions), questions)
    assert client.pool.servers[0].state == "out"
    assert len(two[0].requests) <= 20, "no more than were in flight"


def test_a_server_that_recovers_is_used_again_and_reported(two: list[FakeServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ServerPool, "backoff_seconds", lambda self, number: 0.05 * number)
    events: list[Event] = []
    down = threading.Event()
    two[0].mood_for = lambda text: BROKEN if down.is_set() else "ok"
    two[1].seconds_for = lambda text: 0.01
    client = client_of(two, emit=events.append)
    down.set()
    two[0].models = Answer(503)
    send(client, *texts(12))
    assert client.pool.servers[0].state == "out"
    down.clear()
    two[0].models = Answer(200, {"data": []})
    before = len(two[0].requests)
    assert each_answered(send(client, *texts(60)), texts(60))
    assert client.pool.servers[0].state == "in" and len(two[0].requests) > before
    messages = [event.text for event in events if isinstance(event, Message)]
    assert f"The server at {two[0].url} answers again." in messages and "CUDA error" in messages[0]
    states = [[one.state for one in event.servers] for event in events if isinstance(event, Servers)]
    assert ["out", "in"] in states and states[-1] == ["in", "in"]


def test_a_server_that_comes_back_with_another_model_stays_out(two: list[FakeServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ServerPool, "backoff_seconds", lambda self, number: 0.02)
    client = client_of(two)
    for server, _ in client.per_server():
        client.record_listing(server, ["ours", "theirs"])
    two[0].mood_for = lambda text: BROKEN
    two[0].models = Answer(200, {"data": [{"id": "another\x1b[31m"}]})
    two[1].seconds_for = lambda text: 0.02
    assert each_answered(send(client, *texts(60)), texts(60))
    [out, _] = client.pool.servers
    assert out.state == "out" and "now serves another" in out.why and "\x1b" not in out.why


def test_a_server_rests_for_its_retry_after_and_the_other_continues(two: list[FakeServer]):
    two[0].moods = [Answer(429, headers={"Retry-After": "30"})]
    questions = texts(20)
    client = client_of(two)
    started = time.monotonic()
    assert each_answered(send(client, *questions), questions)
    assert time.monotonic() - started < 3 and len(two[0].requests) <= 4
    assert [server.state for server in client.pool.servers] == ["resting", "in"]
    send(client, *texts(8))
    assert len(two[0].requests) <= 4, "it still rests"


def test_the_retry_after_of_the_only_server_applies_to_every_request():
    with fake_server() as server:
        server.moods = [Answer(429, headers={"Retry-After": "0.4"}), "ok"]
        client = client_of([server], concurrency=1)
        started = time.monotonic()
        assert each_answered(send(client, *texts(3)), texts(3))
        elapsed = time.monotonic() - started
    assert elapsed < 3 and len(server.requests) == 4


@pytest.mark.parametrize("number", [1, 2], ids=["one server", "two servers"])
def test_a_request_that_always_fails_fails_alone(two: list[FakeServer], number: int):
    for server in two:
        server.mood_for = lambda text: BROKEN if text == "question 3" else "ok"
    questions = texts(12)
    responses = send(client_of(two[:number]), *questions)
    bad = responses.pop(3)
    assert bad.failed and "returned 500" in bad.refused and "CUDA error" in bad.refused and bad.text == ""
    assert each_answered(responses, [text for text in questions if text != "question 3"])
    requests = sum((received(server) for server in two), Counter())
    control = CONTROL.messages[0]["content"]
    assert requests.pop("question 3") == TRIES and requests.pop(control) == 1
    assert set(requests.values()) == {1}, "nothing else is sent twice"


@pytest.mark.parametrize("mood", ["drop", "hang", Answer(200, b"<html>")], ids=str)
def test_it_fails_alone_whatever_the_failure(two: list[FakeServer], mood: Any):
    for server in two:
        server.mood_for = lambda text: mood if text == "bad" else "ok"
    good, bad = send(client_of(two, timeout_seconds=0.3), "a", "bad")
    assert good.text == "you said: a\n" and bad.failed


def test_a_rate_limit_is_never_the_requests_fault(two: list[FakeServer]):
    two[0].mood_for = lambda text: Answer(429, {"error": "slow down"}) if text == "late" else "ok"
    with pytest.raises(NetworkError, match=r"429.*slow down"):
        send(client_of(two[:1]), "late")
    assert all(text != CONTROL.messages[0]["content"] for text in received(two[0])), "no control is sent"


def test_it_fails_alone_even_if_it_is_the_only_request(two: list[FakeServer]):
    for server in two:
        server.mood_for = lambda text: BROKEN if text == "bad" else "ok"
    [bad] = send(client_of(two), "bad")
    assert bad.failed


@pytest.mark.parametrize("mood", [BROKEN, Answer(503), "drop", Answer(429)], ids=str)
def test_servers_that_answer_nothing_are_at_fault_not_the_requests(two: list[FakeServer], mood: Any):
    for server in two:
        server.moods = [mood]
    with pytest.raises(NetworkError) as caught:
        send(client_of(two), *texts(6))
    assert caught.value.exit_code == ExitCode.NETWORK
    assert "the same command again" in str(caught.value)


def test_if_all_servers_are_unreachable_the_error_names_each(two: list[FakeServer]):
    urls = [server.url for server in two]
    for server in two:
        server.close()
    with pytest.raises(NetworkError, match="None of the 2 servers responds") as caught:
        send(client_of(urls), "a")
    assert all(url in caught.value.why for url in urls)


def test_a_server_that_denies_access_is_left_out_and_two_end_the_run(two: list[FakeServer]):
    two[0].moods = [Answer(401, {"error": "Invalid API key"})]
    assert each_answered(send(client_of(two), *texts(8)), texts(8))
    two[1].moods = two[0].moods
    with pytest.raises(AccessError, match="Invalid API key"):
        send(client_of(two), *texts(8))


# -- when a server is tried again, without sockets -------------------------------------------------------------------------


class TimedPool:
    """A pool of two servers with its own clock."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.events: list[Event] = []
        addresses = [ServerAddress("http://a/v1"), ServerAddress("http://b/v1")]
        self.pool = ServerPool(addresses, 4, emit=self.events.append, clock=lambda: self.time)
        self.a, self.b = self.pool.servers


def test_the_wait_doubles_with_jitter_up_to_a_minute():
    timed = TimedPool()
    waits = []
    for _ in range(12):
        timed.pool.record_failure(timed.a, timed.time, "gone", unreachable=True, retry_after=None)
        waits.append(timed.a.retry_at - timed.time)
        timed.time = timed.a.retry_at
    for number, wait in enumerate(waits):
        longest = min(2.0**number, MAX_WAIT_SECONDS)
        assert longest / 2 <= wait <= longest
    assert len(set(waits[7:])) > 1


def test_a_server_is_checked_when_it_is_due_and_not_before():
    timed = TimedPool()
    timed.pool.record_failure(timed.a, timed.time, "gone", unreachable=True, retry_after=None)
    assert timed.pool.due_for_check() == []
    timed.time = timed.a.retry_at
    assert timed.pool.due_for_check() == [timed.a]
    timed.a.checking = True
    assert timed.pool.due_for_check() == [], "it is not checked twice"


def test_three_failures_in_a_row_leave_a_server_out():
    timed = TimedPool()
    for _ in range(2):
        timed.pool.record_failure(timed.a, timed.time, "500", unreachable=False, retry_after=None)
    timed.pool.record_success(timed.a, timed.time)
    for _ in range(2):
        timed.pool.record_failure(timed.a, timed.time, "500", unreachable=False, retry_after=None)
    assert timed.a.state == "in"
    timed.pool.record_failure(timed.a, timed.time, "500", unreachable=False, retry_after=None)
    assert timed.a.state == "out"


def test_late_failures_of_one_outage_do_not_count_as_another():
    timed = TimedPool()
    sent = timed.time
    timed.time += 1
    for _ in range(8):
        timed.pool.record_failure(timed.a, sent, "gone", unreachable=True, retry_after=None)
    assert timed.a.outages == 1
    timed.pool.record_success(timed.a, sent)
    assert timed.a.state == "out", "a late response does not end the outage, either"
    timed.pool.due_for_check()
    assert sum(isinstance(event, Message) for event in timed.events) == 1


def test_a_rest_ends_by_itself():
    timed = TimedPool()
    timed.pool.record_failure(timed.a, timed.time, "429", unreachable=False, retry_after=7.0)
    assert timed.a.state == "resting" and timed.a.failures == 0
    timed.time += 6.9
    timed.pool.due_for_check()
    assert timed.a.state == "resting"
    timed.time += 0.2
    timed.pool.due_for_check()
    assert timed.a.state == "in"
