"""A Hub on localhost that the real client can be driven against: whoami, access, info, tree, files, the browser login, in the
moods that the real one has. Headers and bodies are those that huggingface_hub 2.4 reads; the real Hub was not asked.

`hub.account` and `hub.repos[name]` are moods: one word, a list of them (one an answer, the last one stays), or a dict from
what is asked (auth-check, info, tree, head, file) to either. A repository that is not in `hub.repos` is 404.
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
    Asked,
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
    """The header, as it came; empty if there was none."""


class FakeHub:
    def __init__(self) -> None:
        self.account: Mood = "ok"
        self.repos: dict[str, Mood | dict[str, Mood]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        """The files of a repository at every one of its commits."""
        self.commits: dict[str, str] = {}
        """What `main` of a repository is now; it was FIRST_COMMIT, and still is if it is not here."""
        self.auth: dict[str, Any] = {"type": "access_token", "accessToken": {"role": "read", "displayName": "t"}}
        """What whoami says of the token."""
        self.refused: set[str] = set()
        """Tokens that whoami does not take."""
        self.login: list[str] = ["authorization_pending", "hf_oauth_FromTheBrowser12345"]
        """Answers to who polls for a browser's login: an OAuth error, a mood, or the token; the last one stays."""
        self.login_page = ""
        """Where a person goes; empty for a page of this Hub."""
        self.login_seconds: float = 900
        self.login_interval: float = 1
        self.requests: list[Request] = []
        self.elsewhere: list[Request] = []
        """What came to the other host, that `redirect elsewhere` sends to."""
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

    def mood_of(self, repo: str, asked: str) -> str:
        mood = self.repos.get(repo, "404")
        if isinstance(mood, dict):
            mood = mood.get(asked, "ok")
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
            seen = Request(self.command, url.path, self.headers.get("Authorization", ""))
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.is_other(self.server):
                hub.elsewhere.append(seen)
                return self._answer_well(read_path(url.path), seen)
            hub.requests.append(seen)
            if url.path.startswith("/moved/"):
                return self._answer_well(read_path(url.path.removeprefix("/moved")), seen)
            return self._answer_in_mood(read_path(url.path), seen)

        do_HEAD = do_POST = do_GET

        def _answer_in_mood(self, asked: Asked, seen: Request) -> None:
            head = "head" if asked.what == "file" and seen.method == "HEAD" else asked.what
            mood = "ok"
            if asked.what == "whoami":
                mood = next_of(hub.account)
            elif asked.what == "token" and hub.login[0] in KNOWN_MOODS:
                mood = next_of(hub.login)
            elif asked.repo:
                mood = hub.mood_of(asked.repo, {"paths": "tree"}.get(head, head))
            if mood == "hang":
                hub.closing.wait(30)
            elif mood == "members":  # gated, and whoever has a token may read it
                self._answer_well(asked, seen) if seen.authorization else self._send(*ANSWERS["gated, nobody"])
            elif mood in SHARES:
                self._answer_well(asked, seen, SHARES[mood])
            elif mood == "redirect":
                self._redirect(f"/moved{self.path}", asked)
            elif mood == "redirect elsewhere":
                self._redirect(f"{hub.other_endpoint}{self.path}", asked)
            elif mood == "portal":
                self._send(200, {"Content-Type": "text/html"}, PORTAL)
            elif mood == "echo":
                self._send(403, {"X-Error-Message": f"no right for {seen.authorization}"})
            elif mood != "ok":
                anonymous = f"{mood}, nobody"
                self._send(*ANSWERS[anonymous if anonymous in ANSWERS and not seen.authorization else mood])
            else:
                self._answer_well(asked, seen)

        def _answer_well(self, asked: Asked, seen: Request, share: Share = WHOLE) -> None:
            """Like the Hub, except that only a `share` of the body is sent."""
            if asked.repo and hub.commit_of(asked.repo, asked.revision) is None:
                self._send(*ANSWERS["no revision"])
            elif asked.what == "file":
                self._send_file(asked, share)
            else:
                status, answer = self._json(asked, seen)
                self._send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode(), share)

        def _json(self, asked: Asked, seen: Request) -> tuple[int, Any]:
            files = hub.files.get(asked.repo, {})
            if asked.what == "whoami":
                if not seen.authorization or seen.authorization.removeprefix("Bearer ") in hub.refused:
                    return 401, {"error": "Invalid username or password."}
                return 200, {"type": "user", "name": "someone", "auth": hub.auth}
            if asked.what == "device":
                page = hub.login_page or f"{hub.endpoint}/device"
                return 200, {"device_code": "dev-123", "user_code": "ABCD-1234", "verification_uri": page,
                             "expires_in": hub.login_seconds, "interval": hub.login_interval}  # fmt: skip
            if asked.what == "token":
                given = parse_qs(self.body.decode())
                assert given["device_code"] == ["dev-123"] and given["client_id"], given
                answer = next_of(hub.login)
                granted = {"access_token": answer, "token_type": "bearer", "expires_in": 2_592_000}
                return (200, granted) if answer.startswith("hf_") else (400, {"error": answer})
            if asked.what == "info":
                siblings = [{"rfilename": name} for name in files]
                return 200, {
                    "id": asked.repo,
                    "sha": hub.commit_of(asked.repo, asked.revision),
                    "siblings": siblings,
                    "tags": [],
                }
            if asked.what == "tree":
                below = asked.rest + "/" if asked.rest else ""
                return 200, [entry_of(name, data) for name, data in files.items() if name.startswith(below)]
            if asked.what == "paths":
                return 200, [entry_of(name, files[name]) for name in self._paths_asked_for() if name in files]
            return (200, {}) if asked.what == "auth-check" else (404, {"error": "Not found"})

        def _paths_asked_for(self) -> list[str]:
            text = self.body.decode()
            return list(json.loads(text)["paths"]) if text.startswith("{") else parse_qs(text).get("paths", [])

        def _send_file(self, asked: Asked, share: Share) -> None:
            data = hub.files.get(asked.repo, {}).get(asked.rest)
            commit = {"X-Repo-Commit": str(hub.commit_of(asked.repo, asked.revision))}
            if data is None:
                self._send(404, {"X-Error-Code": "EntryNotFound", **commit})
                return
            headers = {"ETag": f'"{oid_of(data)}"', "Accept-Ranges": "bytes", **commit}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206 if start else 200, headers, data[start:], share)

        def _redirect(self, target: str, asked: Asked) -> None:
            headers = {"Location": target}
            data = hub.files.get(asked.repo, {}).get(asked.rest)
            if data is None and asked.what == "file":
                return self._send_file(asked, WHOLE)
            if data is not None:  # what the client reads if the target is a store of files, and no Hub
                headers |= {
                    "X-Repo-Commit": str(hub.commit_of(asked.repo, asked.revision)),
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
            """Nothing on stderr."""

    return Handler
