"""/metrics of a vLLM server: read, shown, and not believed."""

from __future__ import annotations

import pytest

from engine.core.events import Event, Servers
from engine.models.server.address import server_address
from engine.models.server.client import ServerClient
from engine.models.server.metrics import MAX_CHARACTERS, ServerLoad, address_of_metrics, server_load
from engine.run.stop import StopToken
from tests.support.fake_server import Answer, FakeServer, fake_server

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 1e1 1714521600000
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99
vllm:kv_cache_usage_perc{engine="0"} 0.41
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 7.0
"""


def test_engines_are_added_up_and_the_fullest_cache_counts():
    assert server_load(VLLM) == ServerLoad(running=5.0, waiting=10.0, cache=0.41)
    assert server_load(VLLM.replace("\n", "\r\n")) == server_load(VLLM)


def test_the_name_before_version_0_10_is_read_too():
    assert server_load('vllm:gpu_cache_usage_perc{model_name="m"} 0.07\n').cache == 0.07


@pytest.mark.parametrize(
    "text",
    ["", "<html>Please log in</html>", "llamacpp:requests_processing 1\n", "vllm:num_requests_running", "\0" * 9],
)
def test_what_tells_nothing_shows_nothing(text: str):
    assert not server_load(text).tells


@pytest.mark.parametrize(
    "number", ["NaN", "inf", "-1", "1e999", "-1e999", "9" * 30, "--", "1.5.5", "0x10", "", "\x1b[31m"]
)
def test_a_number_that_cannot_be_is_none(number: str):
    text = f"vllm:num_requests_running {number}\nvllm:kv_cache_usage_perc {number}\n"
    assert not server_load(text).tells
    assert not server_load(text + text.replace(number, "1e999") if number else text).tells


def test_a_long_text_takes_a_moment_and_no_more_of_it_is_read():
    assert server_load(VLLM + "vllm:x{" * (MAX_CHARACTERS // 7)).running == 5.0
    assert not server_load("#" * MAX_CHARACTERS + "\n" + VLLM).tells


def test_they_are_beside_v1():
    assert address_of_metrics("http://h:8000/v1") == "http://h:8000/metrics"
    assert address_of_metrics("http://h/proxy/v1") == "http://h/proxy/metrics"
    assert address_of_metrics("http://h") == "http://h/metrics"


def test_they_are_told_where_they_are_and_nothing_where_they_are_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.models.server.pool.LOAD_SECONDS", 0.05)
    with fake_server() as tells, fake_server() as tells_not:
        tells.metrics = Answer(200, VLLM.encode())
        seen: list[Event] = []
        client = client_of([tells, tells_not], seen)
        client.read_loads()
        for server in (tells, tells_not):
            server.seconds_for = lambda text: 0.3
        client.chat([{"role": "user", "content": "a"}], max_tokens=1)
        readings = [event.servers for event in seen if isinstance(event, Servers)]
        here, there = readings[-1]
        assert (here.running, here.waiting, here.cache) == (5.0, 10.0, 0.41) and there.running is None
        assert tells.metrics_requests >= 3 and tells_not.metrics_requests == 1, "one that has none is asked once"


def test_an_endless_or_broken_body_is_no_load_and_no_error():
    with fake_server() as server:
        for answer in (Answer(500, b"vllm:num_requests_running 3"), Answer(200, b"\xff\xfe"), Answer(302, b"")):
            server.metrics = answer
            client = client_of([server], [])
            client.read_loads()
            assert client.pool.servers[0].load_due is None


def client_of(servers: list[FakeServer], seen: list[Event]) -> ServerClient:
    addresses = [server_address(server.url, {}) for server in servers]
    return ServerClient(addresses, "ours", StopToken(), concurrency=2, timeout_seconds=5, emit=seen.append)
