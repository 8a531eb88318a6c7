"""A fake Hub on localhost that accepts pushes: whoami, repositories, preupload, LFS and commits, with the failures of
the real one.

`hub.moods[step]` is what a step of `STEPS` returns instead of working: a status ("403", "503 and a message"), "cut" (the connection
ends in the middle of the body), "hang", "portal" (a web page), "echo" (a 403 that repeats the token), "busy for an hour", "over
the limit"; or a list of them, one per response, after which it works. The responses have the format that huggingface_hub 2.4 reads;
they were not recorded from the real Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from engine.push.repository import git_hash

ACCOUNT = "someone"
LFS_FROM_BYTES = 1500
"""Larger files go to LFS, as safetensors and long files do on the real one."""
STEPS = {
    "whoami": r"GET /api/whoami-v2",
    "info": r"GET /api/(?:models|datasets)/[^/]+/[^/]+",
    "auth": r"GET /api/(?:models|datasets)/[^/]+/[^/]+/auth-check/write",
    "create": r"POST /api/repos/create",
    "yaml": r"POST /api/validate-yaml",
    "preupload": r"POST /api/(?:models|datasets)/[^/]+/[^/]+/preupload/main",
    "batch": r"POST /(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch",
    "upload": r"PUT /lfs/\w+",
    "verify": r"POST /lfs/verify",
    "commit": r"POST /api/(?:models|datasets)/[^/]+/[^/]+/commit/main",
    "file": r"(GET|HEAD) /(?:datasets/)?[^/]+/[^/]+/resolve/[^/]+/.+",
}


@dataclass
class Repo:
    private: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    """`summary`, `description`, `files` (names), of each commit."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps([len(self.commits), sorted(self.files)]).encode()).hexdigest()


@dataclass
class Request:
    step: str
    body: bytes
    authorization: str
    other_headers: str


class FakeHubPush:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moods: dict[str, str | list[str]] = {}
        self.requests: list[Request] = []
        self.account: dict[str, Any] = {
            "name": ACCOUNT,
            "orgs": [{"name": "lab", "roleInOrg": "write"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
        }
        self.large: dict[str, bytes] = {}
        """Files in LFS, by SHA-256."""
        self.before_body: Callable[[str], None] = lambda step: None
        """Called with the step before the body of its request is read."""
        self.makes_public = False
        """Whether new repositories are public whatever was requested."""
        self.arrived: dict[str, threading.Event] = {step: threading.Event() for step in STEPS}
        """Set when a step is first requested."""
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.storage = f"http://localhost:{self._server.server_address[1]}"
        """Another name for this host, since large files go to a third party."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def steps(self) -> list[str]:
        return [request.step for request in self.requests]

    def respond(self, step: str, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body as plain data or bytes) of a successful step."""
        if step == "whoami":
            return 200, {}, self.account
        if step == "create":
            return self._create(json.loads(body))
        if step == "yaml":
            return 200, {}, {"warnings": [], "errors": []}
        if step == "upload":
            oid = path.rpartition("/")[2].partition("?")[0]
            if hashlib.sha256(body).hexdigest() != oid:  # the connection ended in the middle of the file
                return 400, {}, {"error": "BadDigest"}
            self.large[oid] = body
            return 200, {}, {}
        if step == "verify":
            return 200, {}, {}
        repo_id = re.match(r"/(?:api/models/|api/datasets/|datasets/)?([^/]+/[^/]+?)(?:\.git/|/|$)", path)[1]  # type: ignore[index]
        repo = self.repos.get(repo_id)
        if repo is None:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, {}
        if step == "info":
            return 200, {}, _info(repo_id, repo)
        if step == "auth":
            return 200, {}, {}
        if step == "preupload":
            return 200, {}, {"files": [self._mode(repo, file) for file in json.loads(body)["files"]]}
        if step == "batch":
            return 200, {}, self._batch(json.loads(body))
        if step == "file":
            return self._file(repo, path)
        return self._commit(repo_id, repo, [json.loads(line) for line in body.splitlines()])

    def _create(self, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        repo_id = f"{request.get('organization') or ACCOUNT}/{request['name']}"
        if repo_id in self.repos:
            return 409, {}, {"error": "You already created this model repo", "url": f"{self.endpoint}/{repo_id}"}
        self.repos[repo_id] = Repo(private=request.get("visibility") == "private" and not self.makes_public)
        return 200, {}, {"url": f"{self.endpoint}/{repo_id}"}

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        old = repo.files.get(file["path"])
        large = file["size"] >= LFS_FROM_BYTES
        oid = None if old is None else hashlib.sha256(old).hexdigest() if large else git_hash(old)
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})}

    def _batch(self, request: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for wanted in request["objects"]:
            actions = {
                "upload": {"href": f"{self.storage}/lfs/{wanted['oid']}?signature=of-the-upload"},
                "verify": {"href": f"{self.endpoint}/lfs/verify"},
            }
            known = wanted["oid"] in self.large
            objects.append({**wanted, **({} if known else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo_id: str, repo: Repo, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], Any]:
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.sha):
            return 412, {}, {"error": "A commit has happened since. Please refresh and try again."}
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        repo.files |= files
        repo.commits.append({**header, "files": sorted(files)})
        url = f"{self.endpoint}/{repo_id}/commit/{repo.sha}"
        return 200, {}, {"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""}

    def _file(self, repo: Repo, path: str) -> tuple[int, dict[str, str], Any]:
        data = repo.files.get(path.split("/resolve/")[1].partition("/")[2])
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.sha}, b""
        return 200, {"ETag": f'"{git_hash(data)}"', "X-Repo-Commit": repo.sha}, data


@contextmanager
def fake_hub_push() -> Iterator[FakeHubPush]:
    hub = FakeHubPush()
    try:
        yield hub
    finally:
        hub.close()


def _info(repo_id: str, repo: Repo) -> dict[str, Any]:
    siblings = []
    for name, data in repo.files.items():
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        kept = (
            {"lfs": lfs, "blobId": git_hash(b"a pointer")}
            if len(data) >= LFS_FROM_BYTES
            else {"blobId": git_hash(data)}
        )
        siblings.append({"rfilename": name, "size": len(data), **kept})
    return {
        "_id": "1",
        "id": repo_id,
        "modelId": repo_id,
        "private": repo.private,
        "sha": repo.sha,
        "siblings": siblings,
    }


def _handler(hub: FakeHubPush) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet: in two, the second waits 40 ms for the ACK of the first

        def _do(self) -> None:
            path = urlsplit(self.path).path
            step = next((step for step, form in STEPS.items() if re.fullmatch(form, f"{self.command} {path}")), "none")
            hub.before_body(step)
            body = self._body()
            authorization = self.headers.get("Authorization", "")
            others = "".join(
                f"{key}: {value}\n" for key, value in self.headers.items() if key.lower() != "authorization"
            )
            with hub.lock:
                hub.requests.append(Request(step, body, authorization, f"{self.path}\n{others}"))
            if step in hub.arrived:
                hub.arrived[step].set()
            mood = hub.moods.get(step, "ok")
            if isinstance(mood, list):
                mood = mood.pop(0) if mood else "ok"
            if mood == "hang":
                hub.closing.wait(30)
                self.close_connection = True
            elif mood == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"half":')
                self.close_connection = True
            elif mood == "portal":
                self._send(200, {"Content-Type": "text/html"}, b"<html>Please log in to the hotel's network</html>")
            elif mood == "echo":
                self._send(403, {"X-Error-Message": f"no right for {authorization}"}, {})
            elif mood == "busy for an hour":
                self._send(429, {"Retry-After": "3600"}, {})
            elif mood == "over the limit":
                self._send(
                    429, {"RateLimit": '"api";r=0;t=290', "RateLimit-Policy": '"fixed window";"api";q=9;w=300'}, {}
                )
            elif mood != "ok":
                self._send(int(mood.split()[0]), {}, {"error": mood.partition(" ")[2] or f"it is {mood} today"})
            elif step == "none":
                self._send(404, {}, {"error": "no such place"})
            else:
                with hub.lock:
                    answer = hub.respond(step, path, body)
                self._send(*answer)

        do_GET = do_HEAD = do_POST = do_PUT = _do

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    return Handler
