"""A fake OpenAI-compatible server on localhost, over real sockets, with the failures of real ones.

Each chat request takes the next of `moods`, and the last one repeats: ok, hang, drop, garbage, redirect, echo, or an
`Answer` with any status and body. ok repeats the message after `seconds_for(message)`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any = b""
    """Bytes, or data to send as JSON."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    path: str
    authorization: str
    body: dict[str, Any]


class FakeServer:
    def __init__(self) -> None:
        self.moods: list[str | Answer] = ["ok"]
        self.mood_for: Callable[[str], str | Answer] | None = None
        """The mood by the last message's text; takes precedence over `moods`."""
        self.seconds_for: Callable[[str], float] = lambda text: 0.0
        self.finish_reason: str | None = "stop"
        self.usage: dict[str, int] | None = {"completion_tokens": 3, "prompt_tokens": 7}
        self.models: Answer = Answer(200, {"data": [{"id": "ours"}, {"id": "theirs"}]})
        self.metrics: Answer = Answer(404, {"detail": "Not Found"})
        self.metrics_requests = 0
        self.requests: list[Request] = []
        """Every chat request."""
        self.most_at_once = 0
        self.hung_up = 0
        """Hanging requests whose client closed the connection."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._at_once = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def counted(self, request: Request) -> Iterator[str | Answer]:
        text = request.body["messages"][-1]["content"]
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            mood = self.mood_for(text) if self.mood_for else self.moods.pop(0) if len(self.moods) > 1 else self.moods[0]
        try:
            yield mood
        finally:
            with self._lock:
                self._at_once -= 1

    def count_hung_up(self) -> None:
        with self._lock:
            self.hung_up += 1


def choices(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", **choice}]}


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    try:
        yield server
    finally:
        server.close()


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/metrics":
                server.metrics_requests += 1
                self._send(server.metrics)
                return
            self._send(server.models if self.path == "/v1/models" else Answer(404, {"detail": "Not Found"}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, self.headers.get("Authorization", ""), body)
            with server.counted(request) as mood:
                answer = self._answer(request, mood)
            if answer is not None:
                self._send(answer)

        def _answer(self, request: Request, mood: str | Answer) -> Answer | None:
            text = request.body["messages"][-1]["content"]
            if isinstance(mood, Answer):
                return mood
            match mood:
                case "ok":
                    time.sleep(server.seconds_for(text))
                    message = {"role": "assistant", "content": f"you said: {text}\n"}
                    return Answer(
                        200, {**choices(message=message, finish_reason=server.finish_reason), "usage": server.usage}
                    )
                case "hang":
                    self.connection.settimeout(0.02)
                    self._hang()
                case "redirect":
                    return Answer(307, headers={"Location": f"{server.url}/elsewhere"})
                case "echo":
                    return Answer(403, {"error": {"message": f"no right for {request.authorization} \x1b[31m!"}})
            self.close_connection = True  # drop
            return None

        def _hang(self) -> None:
            while not server.closing.is_set():
                try:
                    if self.connection.recv(1) == b"":
                        server.count_hung_up()
                        return
                except TimeoutError:
                    continue

        def _send(self, answer: Answer) -> None:
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            try:
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:  # the client no longer waits
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    return Handler
