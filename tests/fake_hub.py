"""A Hub on localhost: whoami, auth-check and repository info, in the moods that the real one has.

`hub.account` and `hub.repos[name]` are moods: ok, 401, gated, fine-grained, 404, 403, 429, 503, hang, redirect, portal,
echo; or a list of them, one an answer. The headers are those that huggingface_hub 2.4 reads;
the real Hub was not asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Mood = str | list[str]

FINE_GRAINED = (
    "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
)
_ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "401": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "gated": (
        403,
        {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted, accept the terms."},
    ),
    "fine-grained": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": FINE_GRAINED}),
    "403": (403, {"X-Error-Message": "You have no \x1b[31mright\x1b[0m to."}),
    "404": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "429": (429, {"Retry-After": "3600"}),
    "429 briefly": (429, {"Retry-After": "0"}),
    "503": (503, {}),
    "418": (418, {}),
}


class FakeHub:
    def __init__(self) -> None:
        self.account: Mood = "ok"
        self.repos: dict[str, Mood] = {}
        """By name (`owner/name`); a name that is not here is 404."""
        self.requests: list[tuple[str, str]] = []
        """(path, Authorization header) of every request."""
        self.role = "read"
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def mood_of(self, path: str) -> str:
        if path == "/api/whoami-v2":
            return _next(self.account)
        name = path.removeprefix("/api/models/").removeprefix("/api/datasets/")
        name = "/".join(name.split("/")[:2])
        return _next(self.repos.get(name, "404"))


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def _next(mood: Mood) -> str:
    if isinstance(mood, str):
        return mood
    return mood.pop(0) if len(mood) > 1 else mood[0]


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            authorization = self.headers.get("Authorization", "")
            hub.requests.append((path, authorization))
            mood = "ok" if path.startswith("/moved") else hub.mood_of(path)
            if mood == "hang":
                hub.closing.wait(30)
                return
            if mood == "redirect":
                self._answer(307, {"Location": f"{hub.endpoint}/moved{path}"})
            elif mood == "portal":
                self._answer(200, {"Content-Type": "text/html"}, b"<html>Please log in to the hotel's network</html>")
            elif mood == "echo":
                self._answer(403, {"X-Error-Message": f"no right for {authorization}"})
            elif mood == "gated" and not authorization:
                self._answer(401, _ANSWERS["gated"][1])
            elif mood in _ANSWERS:
                self._answer(*_ANSWERS[mood])
            elif path.endswith("/whoami-v2"):
                account = {
                    "name": "someone",
                    "type": "user",
                    "auth": {"accessToken": {"role": hub.role, "displayName": "t"}},
                }
                self._answer(200, {}, json.dumps(account).encode())
            else:
                self._answer(200, {}, json.dumps({"id": path, "sha": "0" * 40}).encode())

        def _answer(self, status: int, headers: dict[str, str], body: bytes = b"{}") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    return Handler
