"""Several servers of one model: shared out, left out and taken back, over real sockets; what became of each request counts."""

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
"""Of a wait, so that backing off takes no time here."""


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


def ask(client: ServerClient, *texts: str, **more: Any) -> list[ChatResponse]:
    return client.ask([ChatRequest([{"role": "user", "content": text}], 8) for text in texts], **more)


def texts(number: int) -> list[str]:
    return [f"question {i}" for i in range(number)]


def all_said(answers: Sequence[ChatResponse], asked: Sequence[str]) -> bool:
    """Whether each answer is the one to its question: none is lost, none stands twice."""
    return [answer.text for answer in answers] == [f"you said: {text}\n" for text in asked]


def heard(server: FakeServer) -> Counter[str]:
    return Counter(asked.body["messages"][-1]["content"] for asked in server.requests)


def test_requests_are_shared_out_and_each_is_answered_once(two: list[FakeServer]):
    for server in two:
        server.seconds_for = lambda text: 0.01
    asked = texts(40)
    assert all_said(ask(client_of(two), *asked), asked)
    here, there = map(heard, two)
    assert here + there == Counter(asked) and min(here.total(), there.total()) >= 15
    assert all(2 <= server.most_at_once <= 4 for server in two), "the limit holds for each of them"


def test_the_slower_server_gets_fewer(two: list[FakeServer]):
    two[0].seconds_for = lambda text: 0.3
    two[1].seconds_for = lambda text: 0.005
    asked = texts(40)
    assert all_said(ask(client_of(two), *asked), asked)
    assert len(two[0].requests) < len(two[1].requests) / 2


def test_one_that_nobody_can_reach_is_left_out_and_the_other_does_all(two: list[FakeServer]):
    events: list[Event] = []
    gone = two[0].url
    two[0].close()
    asked = texts(20)
    client = client_of([gone, two[1]], emit=events.append)
    assert all_said(ask(client, *asked), asked)
    assert heard(two[1]) == Counter(asked)
    [told] = [event for event in events if isinstance(event, Message)]
    assert told.level == "warning" and gone in told.text and "1 of 2 servers go on" in told.text
    assert [server.state for server in client.pool.servers] == ["out", "in"]


def test_one_that_dies_in_the_middle_loses_nothing(two: list[FakeServer]):
    asked = texts(60)
    two[0].mood_for = lambda text: "drop" if len(two[0].requests) > 8 else "ok"
    two[0].models = Answer(503)  # and it does not come back
    two[1].seconds_for = lambda text: 0.005
    client = client_of(two)
    assert all_said(ask(client, *asked), asked)
    assert client.pool.servers[0].state == "out"
    assert len(two[0].requests) <= 20, "no more than were on their way"


def test_one_that_comes_back_is_asked_again_and_told(two: list[FakeServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ServerPool, "back_off", lambda self, number: 0.05 * number)
    events: list[Event] = []
    down = threading.Event()
    two[0].mood_for = lambda text: BROKEN if down.is_set() else "ok"
    two[1].seconds_for = lambda text: 0.01
    client = client_of(two, emit=events.append)
    down.set()
    two[0].models = Answer(503)
    ask(client, *texts(12))
    assert client.pool.servers[0].state == "out"
    down.clear()
    two[0].models = Answer(200, {"data": []})
    before = len(two[0].requests)
    assert all_said(ask(client, *texts(60)), texts(60))
    assert client.pool.servers[0].state == "in" and len(two[0].requests) > before
    words = [event.text for event in events if isinstance(event, Message)]
    assert f"The server at {two[0].url} answers again." in words and "CUDA error" in words[0]
    states = [[one.state for one in event.servers] for event in events if isinstance(event, Servers)]
    assert ["out", "in"] in states and states[-1] == ["in", "in"]


def test_one_that_comes_back_with_another_model_stays_out(two: list[FakeServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ServerPool, "back_off", lambda self, number: 0.02)
    client = client_of(two)
    for server, _ in client.each():
        client.has_listed(server, ["ours", "theirs"])
    two[0].mood_for = lambda text: BROKEN
    two[0].models = Answer(200, {"data": [{"id": "another\x1b[31m"}]})
    two[1].seconds_for = lambda text: 0.02
    assert all_said(ask(client, *texts(60)), texts(60))
    [out, _] = client.pool.servers
    assert out.state == "out" and "serves another" in out.why and "\x1b" not in out.why


def test_a_server_that_names_a_pause_is_given_it_and_the_other_goes_on(two: list[FakeServer]):
    two[0].moods = [Answer(429, headers={"Retry-After": "30"})]
    asked = texts(20)
    client = client_of(two)
    started = time.monotonic()
    assert all_said(ask(client, *asked), asked)
    assert time.monotonic() - started < 3 and len(two[0].requests) <= 4
    assert [server.state for server in client.pool.servers] == ["resting", "in"]
    ask(client, *texts(8))
    assert len(two[0].requests) <= 4, "it still rests"


def test_a_pause_of_the_only_server_holds_for_every_request():
    with fake_server() as server:
        server.moods = [Answer(429, headers={"Retry-After": "0.4"}), "ok"]
        client = client_of([server], concurrency=1)
        started = time.monotonic()
        assert all_said(ask(client, *texts(3)), texts(3))
        times = time.monotonic() - started
    assert times < 3 and len(server.requests) == 4


@pytest.mark.parametrize("number", [1, 2], ids=["one server", "two servers"])
def test_a_request_at_which_they_always_fail_fails_alone(two: list[FakeServer], number: int):
    for server in two:
        server.mood_for = lambda text: BROKEN if text == "question 3" else "ok"
    asked = texts(12)
    answers = ask(client_of(two[:number]), *asked)
    bad = answers.pop(3)
    assert bad.failed and "returns 500" in bad.refused and "CUDA error" in bad.refused and bad.text == ""
    assert all_said(answers, [text for text in asked if text != "question 3"])
    every = sum((heard(server) for server in two), Counter())
    control = CONTROL.messages[0]["content"]
    assert every.pop("question 3") == TRIES and every.pop(control) == 1
    assert set(every.values()) == {1}, "nothing else is asked twice"


@pytest.mark.parametrize("mood", ["drop", "hang", Answer(200, b"<html>")], ids=str)
def test_it_may_fail_in_any_way(two: list[FakeServer], mood: Any):
    for server in two:
        server.mood_for = lambda text: mood if text == "bad" else "ok"
    good, bad = ask(client_of(two, timeout_seconds=0.3), "a", "bad")
    assert good.text == "you said: a\n" and bad.failed


def test_a_limit_on_the_rate_is_never_the_requests_fault(two: list[FakeServer]):
    two[0].mood_for = lambda text: Answer(429, {"error": "slow down"}) if text == "late" else "ok"
    with pytest.raises(NetworkError, match=r"429.*slow down"):
        ask(client_of(two[:1]), "late")
    assert all(text != CONTROL.messages[0]["content"] for text in heard(two[0])), "nothing is to be weighed"


def test_even_if_it_is_the_last_one(two: list[FakeServer]):
    for server in two:
        server.mood_for = lambda text: BROKEN if text == "bad" else "ok"
    [bad] = ask(client_of(two), "bad")
    assert bad.failed


@pytest.mark.parametrize("mood", [BROKEN, Answer(503), "drop", Answer(429)], ids=str)
def test_servers_that_answer_nothing_are_lost_not_the_requests(two: list[FakeServer], mood: Any):
    for server in two:
        server.moods = [mood]
    with pytest.raises(NetworkError) as caught:
        ask(client_of(two), *texts(6))
    assert caught.value.exit_code == ExitCode.NETWORK
    assert "the same command again" in str(caught.value)


def test_all_away_names_each_and_what_it_said(two: list[FakeServer]):
    urls = [server.url for server in two]
    for server in two:
        server.close()
    with pytest.raises(NetworkError, match="None of the 2 servers answers") as caught:
        ask(client_of(urls), "a")
    assert all(url in caught.value.why for url in urls)


def test_one_that_lets_nobody_in_is_left_out_and_two_end_the_run(two: list[FakeServer]):
    two[0].moods = [Answer(401, {"error": "Invalid API key"})]
    assert all_said(ask(client_of(two), *texts(8)), texts(8))
    two[1].moods = two[0].moods
    with pytest.raises(AccessError, match="Invalid API key"):
        ask(client_of(two), *texts(8))


# -- when a server is asked again, without sockets ------------------------------------------------------------------------


class Pool:
    """A pool of two on a clock of its own."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.told: list[Event] = []
        addresses = [ServerAddress("http://a/v1"), ServerAddress("http://b/v1")]
        self.pool = ServerPool(addresses, 4, emit=self.told.append, clock=lambda: self.time)
        self.a, self.b = self.pool.servers


def test_it_waits_longer_each_time_with_jitter_and_never_longer_than_a_minute():
    of = Pool()
    waits = []
    for _ in range(12):
        of.pool.failed(of.a, of.time, "gone", gone=True, rest_seconds=None)
        waits.append(of.a.until - of.time)
        of.time = of.a.until
    for number, wait in enumerate(waits):
        longest = min(2.0**number, MAX_WAIT_SECONDS)
        assert longest / 2 <= wait <= longest
    assert len(set(waits[7:])) > 1


def test_it_is_asked_how_it_is_when_it_is_due_and_not_before():
    of = Pool()
    of.pool.failed(of.a, of.time, "gone", gone=True, rest_seconds=None)
    assert of.pool.due() == []
    of.time = of.a.until
    assert of.pool.due() == [of.a]
    of.a.asking = True
    assert of.pool.due() == [], "once is enough"


def test_three_failures_leave_it_out_unless_it_answers_between():
    of = Pool()
    for _ in range(2):
        of.pool.failed(of.a, of.time, "500", gone=False, rest_seconds=None)
    of.pool.answered(of.a, of.time)
    for _ in range(2):
        of.pool.failed(of.a, of.time, "500", gone=False, rest_seconds=None)
    assert of.a.state == "in"
    of.pool.failed(of.a, of.time, "500", gone=False, rest_seconds=None)
    assert of.a.state == "out"


def test_the_echo_of_an_outage_is_no_second_one():
    of = Pool()
    sent = of.time
    of.time += 1
    for _ in range(8):
        of.pool.failed(of.a, sent, "gone", gone=True, rest_seconds=None)
    assert of.a.outages == 1
    of.pool.answered(of.a, sent)
    assert of.a.state == "out", "nor does a late answer end it"
    of.pool.due()
    assert sum(isinstance(event, Message) for event in of.told) == 1


def test_a_pause_ends_by_itself():
    of = Pool()
    of.pool.failed(of.a, of.time, "429", gone=False, rest_seconds=7.0)
    assert of.a.state == "resting" and of.a.strikes == 0
    of.time += 6.9
    of.pool.due()
    assert of.a.state == "resting"
    of.time += 0.2
    of.pool.due()
    assert of.a.state == "in"
