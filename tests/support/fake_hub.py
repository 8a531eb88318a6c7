"""A fake Hub on localhost for the real client: whoami, access, info, tree, files and the browser login, with the
failures of the real one. Headers and bodies are those that huggingface_hub 2.4 reads; they were not recorded from
the real Hub.

`hub.account` and `hub.repos[name]` are moods: a word, a list of them (one per response, the last one repeats), or a dict from
the resource (auth-check, info, tree, head, file) to either. A repository that is not in `hub.repos` is 404.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_hub_responses import (
    ANSWERS,
    KNOWN_MOODS,
    PORTAL,
    SHARES,
    WHOLE,
    Resource,
    Share,
    entry_of,
    oid_of,
    read_path,
)

Mood = str | list[str]
FIRST_COMMIT = "c0ffee" + "0" * 34


class Request(NamedTuple):
    method: str
    path: str
    authorization: str
    """The header as received; empty if there was none."""


class FakeHub:
    def __init__(self) -> None:
        self.account: Mood = "ok"
        self.repos: dict[str, Mood | dict[str, Mood]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        """The files of a repository, the same at each of its commits."""
        self.commits: dict[str, str] = {}
        """The commit of a repository's `main`; FIRST_COMMIT unless it is listed here."""
        self.auth: dict[str, Any] = {"type": "access_token", "accessToken": {"role": "read", "displayName": "t"}}
        """What whoami returns about the token."""
        self.refused: set[str] = set()
        """Tokens that whoami rejects."""
        self.login: list[str] = ["authorization_pending", "hf_oauth_FromTheBrowser12345"]
        """Responses to polling for the browser login: an OAuth error, a mood, or the token; the last one repeats."""
        self.login_page = ""
        """Address of the login page; empty for a page of this Hub."""
        self.login_seconds: float = 900
        self.login_interval: float = 1
        self.requests: list[Request] = []
        self.elsewhere: list[Request] = []
        """Requests to the other host, to which `redirect elsewhere` leads."""
        self.closing = threading.Event()
        self._main, self._other = (ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2))
        self.endpoint = f"http://127.0.0.1:{self._main.server_address[1]}"
        self.other_endpoint = f"http://localhost:{self._other.server_address[1]}"
        for server in (self._main, self._other):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        for server in (self._main, self._other):
            server.shutdown()
            server.server_close()

    def is_other(self, server: Any) -> bool:
        return server is self._other

    def mood_of(self, repo: str, resource: str) -> str:
        mood = self.repos.get(repo, "404")
        if isinstance(mood, dict):
            mood = mood.get(resource, "ok")
        return next_of(mood)

    def commit_of(self, repo: str, revision: str) -> str | None:
        now = self.commits.get(repo, FIRST_COMMIT)
        return {"main": now, now: now, FIRST_COMMIT: FIRST_COMMIT}.get(revision)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def next_of(mood: Mood) -> str:
    if isinstance(mood, str):
        return mood
    return mood.pop(0) if len(mood) > 1 else mood[0]


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            request = Request(self.command, url.path, self.headers.get("Authorization", ""))
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.is_other(self.server):
                hub.elsewhere.append(request)
                return self._respond_well(read_path(url.path), request)
            hub.requests.append(request)
            if url.path.startswith("/moved/"):
                return self._respond_well(read_path(url.path.removeprefix("/moved")), request)
            return self._respond_in_mood(read_path(url.path), request)

        do_HEAD = do_POST = do_GET

        def _respond_in_mood(self, resource: Resource, request: Request) -> None:
            head = "head" if resource.kind == "file" and request.method == "HEAD" else resource.kind
            mood = "ok"
            if resource.kind == "whoami":
                mood = next_of(hub.account)
            elif resource.kind == "token" and hub.login[0] in KNOWN_MOODS:
                mood = next_of(hub.login)
            elif resource.repo:
                mood = hub.mood_of(resource.repo, {"paths": "tree"}.get(head, head))
            if mood == "hang":
                hub.closing.wait(30)
            elif mood == "members":  # gated, but readable with any token
                self._respond_well(resource, request) if request.authorization else self._send(
                    *ANSWERS["gated, nobody"]
                )
            elif mood in SHARES:
                self._respond_well(resource, request, SHARES[mood])
            elif mood == "redirect":
                self._redirect(f"/moved{self.path}", resource)
            elif mood == "redirect elsewhere":
                self._redirect(f"{hub.other_endpoint}{self.path}", resource)
            elif mood == "portal":
                self._send(200, {"Content-Type": "text/html"}, PORTAL)
            elif mood == "echo":
                self._send(403, {"X-Error-Message": f"no right for {request.authorization}"})
            elif mood != "ok":
                anonymous = f"{mood}, nobody"
                self._send(*ANSWERS[anonymous if anonymous in ANSWERS and not request.authorization else mood])
            else:
                self._respond_well(resource, request)

        def _respond_well(self, resource: Resource, request: Request, share: Share = WHOLE) -> None:
            """Respond like the Hub, but send only a `share` of the body."""
            if resource.repo and hub.commit_of(resource.repo, resource.revision) is None:
                self._send(*ANSWERS["no revision"])
            elif resource.kind == "file":
                self._send_file(resource, share)
            else:
                status, answer = self._json(resource, request)
                self._send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode(), share)

        def _json(self, resource: Resource, request: Request) -> tuple[int, Any]:
            files = hub.files.get(resource.repo, {})
            if resource.kind == "whoami":
                if not request.authorization or request.authorization.removeprefix("Bearer ") in hub.refused:
                    return 401, {"error": "Invalid username or password."}
                return 200, {"type": "user", "name": "someone", "auth": hub.auth}
            if resource.kind == "device":
                page = hub.login_page or f"{hub.endpoint}/device"
                return 200, {"device_code": "dev-123", "user_code": "ABCD-1234", "verification_uri": page,
                             "expires_in": hub.login_seconds, "interval": hub.login_interval}  # fmt: skip
            if resource.kind == "token":
                given = parse_qs(self.body.decode())
                assert given["device_code"] == ["dev-123"] and given["client_id"], given
                answer = next_of(hub.login)
                granted = {"access_token": answer, "token_type": "bearer", "expires_in": 2_592_000}
                return (200, granted) if answer.startswith("hf_") else (400, {"error": answer})
            if resource.kind == "info":
                siblings = [{"rfilename": name} for name in files]
                return 200, {
                    "id": resource.repo,
                    "sha": hub.commit_of(resource.repo, resource.revision),
                    "siblings": siblings,
                    "tags": [],
                }
            if resource.kind == "tree":
                below = resource.rest + "/" if resource.rest else ""
                return 200, [entry_of(name, data) for name, data in files.items() if name.startswith(below)]
            if resource.kind == "paths":
                return 200, [entry_of(name, files[name]) for name in self._requested_paths() if name in files]
            return (200, {}) if resource.kind == "auth-check" else (404, {"error": "Not found"})

        def _requested_paths(self) -> list[str]:
            text = self.body.decode()
            return list(json.loads(text)["paths"]) if text.startswith("{") else parse_qs(text).get("paths", [])

        def _send_file(self, resource: Resource, share: Share) -> None:
            data = hub.files.get(resource.repo, {}).get(resource.rest)
            commit = {"X-Repo-Commit": str(hub.commit_of(resource.repo, resource.revision))}
            if data is None:
                self._send(404, {"X-Error-Code": "EntryNotFound", **commit})
                return
            headers = {"ETag": f'"{oid_of(data)}"', "Accept-Ranges": "bytes", **commit}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206 if start else 200, headers, data[start:], share)

        def _redirect(self, target: str, resource: Resource) -> None:
            headers = {"Location": target}
            data = hub.files.get(resource.repo, {}).get(resource.rest)
            if data is None and resource.kind == "file":
                return self._send_file(resource, WHOLE)
            if data is not None:  # what the client reads if the target is a file store, not a Hub
                headers |= {
                    "X-Repo-Commit": str(hub.commit_of(resource.repo, resource.revision)),
                    "X-Linked-Size": str(len(data)),
                }
                headers["X-Linked-Etag"] = f'"{oid_of(data)}"'
            return self._send(307, headers)

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"{}", share: Share = WHOLE) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(int(len(body) * share.announced))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: int(len(body) * share.sent)])
            if share.then_hangs:
                self.wfile.flush()
                hub.closing.wait(30)

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    return Handler
