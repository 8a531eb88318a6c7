"""A server on localhost whose responses no client should read to the end, as a chat server or a Hub.

Each is limited to `MAX_BYTES` and some seconds, so that a client without limits fails its test and does not bring down the
machine.
"""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BYTES = 200 << 20
MAX_SECONDS = 25.0
DEPTH = 200_000


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EndlessServer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        try:
            self.server.act(self)
        except OSError:  # the client has closed the connection
            return
        finally:
            self.server.sent.set()

    do_POST = do_HEAD = do_GET

    def begin(self, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


class EndlessServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, act: Callable[[_Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act = act
        self.written = 0
        self.sent = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def write(self, handler: _Handler, block: bytes) -> None:
        handler.wfile.write(block)
        self.written += len(block)


@contextmanager
def endless_server(kind: str) -> Iterator[EndlessServer]:
    server = EndlessServer(KINDS[kind])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _endless(handler: _Handler) -> None:
    handler.begin()
    handler.server.write(handler, b'{"choices": [{"message": {"content": "')
    while handler.server.written < MAX_BYTES:
        handler.server.write(handler, b"a" * (1 << 20))


def _bomb(handler: _Handler) -> None:
    packed = zipped_zeros(MAX_BYTES)
    handler.begin(Content_Encoding="gzip", Content_Length=str(len(packed)))
    handler.server.write(handler, packed)


@cache
def zipped_zeros(size: int) -> bytes:
    """Gzip of `size` NULs, made in constant memory."""
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def _drip(handler: _Handler) -> None:
    handler.begin()
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end:
        handler.server.write(handler, b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def _dripping_headers(handler: _Handler) -> None:
    handler.server.write(handler, b"HTTP/1.1 200 OK\r\nX-Long: ")
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end:
        handler.server.write(handler, b"a")
        handler.wfile.flush()
        time.sleep(0.05)


def _body(body: bytes, **headers: str) -> Callable[[_Handler], None]:
    def send(handler: _Handler) -> None:
        handler.begin(Content_Length=str(len(body)), **headers)
        handler.server.write(handler, body)

    return send


KINDS: dict[str, Callable[[_Handler], None]] = {
    "endless": _endless,
    "bomb": _bomb,
    "drip": _drip,
    "dripping headers": _dripping_headers,
    "deep": _body(b"[" * DEPTH + b"]" * DEPTH),
    "deep inside": _body(b'{"choices":' + b"[" * DEPTH + b"]" * DEPTH + b"}"),
    "packed otherwise": _body(b"xxxx", Content_Encoding="br"),
    "not packed": _body(b"xxxx", Content_Encoding="gzip"),
    "packed": _body(
        gzip.compress(b'{"name": "me", "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}'),
        Content_Encoding="gzip",
    ),
}
