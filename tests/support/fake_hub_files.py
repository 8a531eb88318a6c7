"""A fake Hub on localhost that serves files: revisions, listings, and files at a commit, as huggingface_hub 2.4 requests them.

For failures (401, gated, 503, …), use `tests.support.fake_hub`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FilesHub:
    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        """(repository, commit) → its files."""
        self.branches: dict[tuple[str, str], str] = {}
        """(repository, branch) → its commit."""
        self.requests: list[str] = []
        """Method and path of every request."""
        self.lies_about_hashes = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def push(self, repo_id: str, folder: Path, branch: str = "main") -> str:
        """Move the branch to a new commit with the files of `folder`."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        everything = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())})
        commit = hashlib.sha1(f"{len(self.commits)}{everything}".encode()).hexdigest()
        self.commits[repo_id, commit], self.branches[repo_id, branch] = files, commit
        return commit

    def downloads(self) -> list[str]:
        """Names of the downloaded files."""
        return [path.rpartition("/")[2] for path in self.requests if path.startswith("GET") and "/resolve/" in path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def files_hub() -> Iterator[FilesHub]:
    hub = FilesHub()
    try:
        yield hub
    finally:
        hub.close()


def _handler(hub: FilesHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(with_body=True)

        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def _serve(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
                self._listing("/".join(parts[2:4]), "/".join(parts[5:]))
            elif parts[2:3] == ["resolve"]:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)
            else:
                self._answer(404, {"X-Error-Code": "RepoNotFound"})

        def _listing(self, repo_id: str, revision: str) -> None:
            commit = hub.branches.get((repo_id, revision), revision)
            files = hub.commits.get((repo_id, commit))
            if files is None:
                known = any(repo == repo_id for repo, _ in hub.commits)
                self._answer(404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
                return
            siblings = [{"rfilename": name, "size": len(data), **self._lfs(name, data)} for name, data in files.items()]
            body = json.dumps({"id": repo_id, "sha": commit, "siblings": siblings}).encode()
            self._answer(200, {"Content-Type": "application/json"}, body)

        def _lfs(self, name: str, data: bytes) -> dict[str, object]:
            if not name.endswith(".safetensors"):
                return {}
            digest = "0" * 64 if hub.lies_about_hashes else hashlib.sha256(data).hexdigest()
            return {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}}

        def _file(self, repo_id: str, revision: str, name: str, with_body: bool) -> None:
            commit = hub.branches.get((repo_id, revision), revision)
            data = hub.commits.get((repo_id, commit), {}).get(name)
            if data is None:
                self._answer(404, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
            self._answer(200, headers, data, with_body=with_body)

        def _answer(self, status: int, headers: dict[str, str], body: bytes = b"", *, with_body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    return Handler
