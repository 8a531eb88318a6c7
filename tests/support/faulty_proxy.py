"""A proxy in front of a real inference server that responds to some requests with a fault, over real sockets."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.fake_server import Answer

Fault = Callable[[dict[str, Any]], Answer | None]
"""The response to a chat request's body, or None to forward it to the server."""


class FaultyProxy:
    def __init__(self, behind: str, fault: Fault, seconds: float = 0.0, port: int = 0) -> None:
        """behind   the server's address, with /v1
        seconds  delay added to each chat request
        """
        self.behind, self.fault, self.seconds = behind, fault, seconds
        self.statuses: Counter[int] = Counter()
        """Responses to chat requests by status; 502 if the server is not running."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, status: int) -> None:
        with self._lock:
            self.statuses[status] += 1


@contextmanager
def faulty_proxy(behind: str, fault: Fault, seconds: float = 0.0) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(behind, fault, seconds)
    try:
        yield proxy
    finally:
        proxy.close()


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(self._forward(None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(proxy.seconds)
            answer = proxy.fault(json.loads(body)) or self._forward(body)
            proxy.count(answer.status)
            self._send(answer)

        def _forward(self, body: bytes | None) -> Answer:
            address = proxy.behind.removesuffix("/v1") + self.path
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return Answer(response.status, response.read())
            except urllib.error.HTTPError as error:
                return Answer(error.code, error.read())
            except OSError:  # the server is not running, or it exited meanwhile
                return Answer(502)

        def _send(self, answer: Answer) -> None:
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            try:
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:  # the client no longer waits
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    return Handler
