"""The Hub's cache, filled by the real client from a local server, even by two at once without locks; damage is found."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine.core.config import Stage3Config, load_config
from engine.core.errors import DamagedState
from engine.models.downloads import Verified, verify_base
from engine.preflight.machine import check_download
from tests.conftest import run_stage

REPO, COMMIT = "owner/model", "c0ffee" + "0" * 34
WEIGHTS, SETTINGS = os.urandom(300_000), b'{"model_type": "gemma"}'
FILES = {
    "model.safetensors": (WEIGHTS, hashlib.sha256(WEIGHTS).hexdigest()),
    "config.json": (SETTINGS, hashlib.sha1(b"blob %d\0" % len(SETTINGS) + SETTINGS).hexdigest()),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves two files in blocks, so that two clients take turns."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        data, etag = FILES[self.path.rpartition("/")[2]]
        requested = self.headers.get("Range", "bytes=0-")
        start = int(requested.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        for name, value in {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(data) - start),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            for at in range(start, len(data), 8192):
                self.wfile.write(data[at : at + 8192])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FETCH = """
import fcntl
fcntl.flock = lambda *_: None  # as on a file system without working locks
from huggingface_hub import hf_hub_download
for name in ("config.json", "model.safetensors"):
    hf_hub_download("owner/model", name)
"""


@pytest.fixture
def cache(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder in a cache that two processes filled at the same time."""
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **quiet, "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "no_proxy": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    both = [subprocess.Popen([sys.executable, "-c", FETCH], env=environment) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub/models--owner--model"


def blob(cache: Path, name: str) -> Path:
    return (cache / "snapshots" / COMMIT / name).resolve()


def config(revision: str = "main") -> Stage3Config:
    return load_config({"base_model_id": REPO, "base_model_revision": revision}, environment={})


def check() -> list[object]:
    return run_stage(check_download(config()))[0]


@pytest.mark.fault("F14")
def test_two_concurrent_downloads_without_locks_are_intact_and_damage_is_found(cache: Path) -> None:
    # A single test, because the two processes take longer than everything below.
    total_bytes = len(WEIGHTS) + len(SETTINGS)
    assert verify_base(config("main")) == verify_base(config(COMMIT)) == Verified(2, total_bytes, ())
    (passed,) = check()
    assert "2 files" in str(passed) and "ok" in str(passed)
    for name in FILES:
        good = blob(cache, name).read_bytes()
        for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], b""):
            blob(cache, name).write_bytes(bad)
            assert verify_base(config()).damaged == (blob(cache, name),)
        with pytest.raises(DamagedState, match=r"1 of 2 files of owner/model") as refused:
            check()
        assert f"rm {blob(cache, name)}" in refused.value.what_to_do and refused.value.exit_code == 10
        blob(cache, name).write_bytes(good)
    blob(cache, "config.json").unlink()
    assert verify_base(config()).damaged == (blob(cache, "config.json"),)


def test_a_model_that_is_not_in_the_cache_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert verify_base(config()) == Verified(0, 0, ())
    assert check() == []
    assert verify_base(load_config({"base_model_id": str(tmp_path)}, environment={})) == Verified(0, 0, ())
