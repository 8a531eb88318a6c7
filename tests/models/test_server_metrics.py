"""/metrics of a vLLM server: parsed, reported, and not trusted."""

from __future__ import annotations

import pytest

from engine.core.events import Event, Servers
from engine.models.server.address import server_address
from engine.models.server.client import ServerClient
from engine.models.server.metrics import MAX_CHARACTERS, ServerLoad, metrics_url, parse_load
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


def test_engines_are_summed_and_the_fullest_cache_counts():
    assert parse_load(VLLM) == ServerLoad(running=5.0, waiting=10.0, cache=0.41)
    assert parse_load(VLLM.replace("\n", "\r\n")) == parse_load(VLLM)


def test_the_metric_name_before_version_0_10_is_read_too():
    assert parse_load('vllm:gpu_cache_usage_perc{model_name="m"} 0.07\n').cache == 0.07


@pytest.mark.parametrize(
    "text",
    ["", "<html>Please log in</html>", "llamacpp:requests_processing 1\n", "vllm:num_requests_running", "\0" * 9],
)
def test_other_texts_give_no_load(text: str):
    assert not parse_load(text).is_known


@pytest.mark.parametrize(
    "number", ["NaN", "inf", "-1", "1e999", "-1e999", "9" * 30, "--", "1.5.5", "0x10", "", "\x1b[31m"]
)
def test_an_impossible_number_is_ignored(number: str):
    text = f"vllm:num_requests_running {number}\nvllm:kv_cache_usage_perc {number}\n"
    assert not parse_load(text).is_known
    assert not parse_load(text + text.replace(number, "1e999") if number else text).is_known


def test_only_the_start_of_a_long_text_is_parsed():
    assert parse_load(VLLM + "vllm:x{" * (MAX_CHARACTERS // 7)).running == 5.0
    assert not parse_load("#" * MAX_CHARACTERS + "\n" + VLLM).is_known


def test_metrics_are_beside_v1():
    assert metrics_url("http://h:8000/v1") == "http://h:8000/metrics"
    assert metrics_url("http://h/proxy/v1") == "http://h/proxy/metrics"
    assert metrics_url("http://h") == "http://h/metrics"


def test_loads_are_reported_for_servers_with_metrics_and_others_are_asked_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.models.server.pool.LOAD_SECONDS", 0.05)
    with fake_server() as vllm, fake_server() as other:
        vllm.metrics = Answer(200, VLLM.encode())
        events: list[Event] = []
        client = client_of([vllm, other], events)
        client.read_loads()
        for server in (vllm, other):
            server.seconds_for = lambda text: 0.3
        client.chat([{"role": "user", "content": "a"}], max_tokens=1)
        readings = [event.servers for event in events if isinstance(event, Servers)]
        first, second = readings[-1]
        assert (first.running, first.waiting, first.cache) == (5.0, 10.0, 0.41) and second.running is None
        assert vllm.metrics_requests >= 3 and other.metrics_requests == 1, "a server without metrics is asked once"


def test_a_failed_or_broken_response_gives_no_load_and_no_error():
    with fake_server() as server:
        for answer in (Answer(500, b"vllm:num_requests_running 3"), Answer(200, b"\xff\xfe"), Answer(302, b"")):
            server.metrics = answer
            client = client_of([server], [])
            client.read_loads()
            assert client.pool.servers[0].load_due is None


def client_of(servers: list[FakeServer], events: list[Event]) -> ServerClient:
    addresses = [server_address(server.url, {}) for server in servers]
    return ServerClient(addresses, "ours", StopToken(), concurrency=2, timeout_seconds=5, emit=events.append)
