"""Endless data from the network or from a compressed file: a limit turns it into an error."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from engine.core import response_limits
from engine.core.errors import DamagedState, ExitCode, NetworkError, UnsafeError
from engine.hub.requests import get, json_of
from engine.models.generation.sampling import RefusedReply, SamplingSettings
from engine.models.server.address import server_address
from engine.models.server.api import ChatRequest
from engine.models.server.backend import ServerBackend
from engine.models.server.client import ServerClient
from engine.packaging.verify import read_files
from engine.packaging.zip_writer import MANIFEST
from engine.pairs.formats import containers, streams
from engine.pairs.formats.containers import rows_of
from engine.run.stop import StopToken
from tests.support.endless_server import endless_server
from tests.support.fake_server import Answer, choices, fake_server
from tests.support.hub_in_process import use
from tests.support.templates import tokenizer_with

MEMORY_LIMIT = 160 << 20
"""The most that a reader here may allocate in Python, in bytes."""


@contextmanager
def limited_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT, f"{peak >> 20} MiB"


# -- servers -----------------------------------------------------------------------------------------------------------


def reply_from(url: str, seconds: float = 20.0) -> str:
    address = server_address(f"{url}/v1", token_variable="NO_SUCH_TOKEN", option="--server-url")

    async def no_sleep(_: float) -> None:
        return

    client = ServerClient([address], "m", StopToken(), concurrency=1, timeout_seconds=seconds, sleep=no_sleep)
    return client.send([ChatRequest([{"role": "user", "content": "Well?"}], 5)], tries=1)[0].text


SERVER_ERRORS = {
    "endless": "larger than 64 MiB",
    "bomb": "larger than 64 MiB",
    "deep": "in OpenAI's format",
    "deep inside": "in OpenAI's format",
    "packed otherwise": "not requested",
    "not packed": "not compressed as its header claims (Error -3 while decompressing data: incorrect header check). ",
}


@pytest.mark.fault("F2-6", "F2-8")
@pytest.mark.parametrize("kind", SERVER_ERRORS)
def test_an_endless_or_undecodable_response_of_a_server_is_a_network_error(kind: str):
    with endless_server(kind) as server, limited_memory(), pytest.raises(NetworkError) as refused:
        reply_from(server.url)
    assert SERVER_ERRORS[kind] in str(refused.value)
    assert server.written < 100 << 20


@pytest.mark.fault("F2-7", "F2-6")
@pytest.mark.parametrize("kind", ["drip", "dripping headers"])
def test_a_server_that_sends_a_byte_now_and_then_runs_into_the_timeout(kind: str):
    with endless_server(kind) as server, pytest.raises(NetworkError, match="did not respond within 1 s"):
        reply_from(server.url, seconds=1)


def test_a_compressed_response_of_a_server_is_read():
    with endless_server("packed") as server:
        assert reply_from(server.url) == "Yes."


@pytest.mark.fault("F2-5")
def test_a_lone_surrogate_in_a_reply_is_recorded_as_a_reason_and_the_other_replies_are_kept():
    with fake_server() as server:
        server.mood_for = lambda text: (
            Answer(200, json.dumps(choices(message={"content": "A \ud83d of it."})).encode())
            if "half" in text
            else "ok"
        )
        address = server_address(server.url, token_variable="NO_SUCH_TOKEN", option="--server-url")
        client = ServerClient([address], "ours", StopToken(), concurrency=2, timeout_seconds=20)
        backend = ServerBackend(client, tokenizer_with("{{ messages }}"))
        conversations = [[{"role": "user", "content": text}] for text in ("half", "whole")]
        refused, complete = backend.reply(conversations, SamplingSettings(8), [0, 0])
    assert isinstance(refused, RefusedReply) and refused.no_text and "\\ud83d" in refused.reason
    assert complete.text and not isinstance(complete, RefusedReply)


# -- the Hub -----------------------------------------------------------------------------------------------------------

HUB_ERRORS = {
    "endless": "larger than 64 MiB",
    "bomb": "larger than 64 MiB",
    "deep": "HF_ENDPOINT",
    "packed otherwise": "not requested",
    "not packed": "not compressed as its header claims",
}


@pytest.fixture
def use_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    def point_to(url: str) -> None:
        fake = type("Fake", (), {"endpoint": url})()
        use(fake, monkeypatch, tmp_path)

    return point_to


@pytest.mark.fault("F2-6", "F2-8", "F4")
@pytest.mark.parametrize("kind", HUB_ERRORS)
def test_an_endless_or_undecodable_response_of_the_hub_is_a_network_error(kind: str, use_hub):
    with endless_server(kind) as server, limited_memory():
        use_hub(server.url)
        with pytest.raises(NetworkError) as refused:
            json_of(get("/api/whoami-v2", None))
    assert HUB_ERRORS[kind] in str(refused.value)
    assert server.written < 100 << 20


@pytest.mark.fault("F2-7", "F4")
@pytest.mark.parametrize("kind", ["drip", "dripping headers"])
def test_a_hub_that_sends_a_byte_now_and_then_is_abandoned(kind: str, use_hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(response_limits, "SLOW_START_SECONDS", 0.5)
    with endless_server(kind) as server:
        use_hub(server.url)
        with pytest.raises(NetworkError, match="returned an invalid response") as refused:
            get("/api/whoami-v2", None)
    assert "too slow" in refused.value.why


@pytest.mark.fault("F2-6", "F4")
@pytest.mark.parametrize("kind", ["endless", "bomb", "packed otherwise"])
def test_the_limits_also_apply_to_requests_of_the_hub_library_itself(kind: str, use_hub):
    from huggingface_hub import HfApi

    from engine.hub.client import limit_requests
    from engine.hub.exception_mapping import as_hub_error

    with endless_server(kind) as server, limited_memory():
        use_hub(server.url)
        limit_requests()
        with pytest.raises(Exception) as refused:
            HfApi(endpoint=server.url).model_info("a/b")
    error = as_hub_error(refused.value)
    assert error is not None and error.exit_code == ExitCode.NETWORK


@pytest.mark.fault("F2-7", "F4")
def test_dripping_headers_also_end_requests_of_the_hub_library_itself(use_hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import HfApi

    from engine.hub.client import limit_requests

    monkeypatch.setattr(response_limits, "SLOW_START_SECONDS", 0.5)
    with endless_server("dripping headers") as server:
        use_hub(server.url)
        limit_requests()
        with pytest.raises(Exception, match="too slow"):
            HfApi(endpoint=server.url).model_info("a/b")


@pytest.mark.parametrize("kind", ["packed"])
def test_a_compressed_response_of_the_hub_is_read(kind: str, use_hub):
    with endless_server(kind) as server:
        use_hub(server.url)
        assert json_of(get("/api/whoami-v2", None))["name"] == "me"


# -- data that expands -------------------------------------------------------------------------------------------------


def zip_of(files: dict[str, int]) -> bytes:
    """An archive of files that contain this many NULs."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, size in files.items():
            entry = zipfile.ZipInfo(f"run/{name}")
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
    return packed.getvalue()


@pytest.mark.fault("F2-6")
@pytest.mark.parametrize(
    ("files", "why"),
    [({MANIFEST: 200 << 20}, "manifest has more than 16 MiB"), ({MANIFEST: 2, "metrics.json": 300 << 20}, "50 times")],
)
def test_a_zip_bomb_is_not_unpacked(files: dict[str, int], why: str, tmp_path: Path):
    (tmp_path / "run_artifacts.zip").write_bytes(zip_of(files))
    with limited_memory(), (tmp_path / "run_artifacts.zip").open("rb") as file, pytest.raises(DamagedState) as refused:
        read_files(file, tmp_path / "run_artifacts.zip")
    assert why in refused.value.why


@pytest.mark.fault("F2-6")
def test_a_gzip_bomb_of_rows_is_decompressed_only_as_far_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "ALWAYS_ALLOWED_BYTES", 8 << 20)
    monkeypatch.setattr(streams, "MAX_DECOMPRESSION_RATIO", 50)
    row = json.dumps({"prompt": "How do I water a fern" + " " * 200 + "?"}).encode() + b"\n"
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb", 1) as file:
        for _ in range(60):
            file.write(row * 1000)
    with limited_memory():
        rows = rows_of(tmp_path / "bomb.jsonl.gz")
        assert [next(rows)[0] for _ in range(4)] == [0, 1, 2, 3]
    read = 4
    with pytest.raises(UnsafeError, match="expand to more than"):
        for number, _ in rows:
            read = number
    assert read > 30_000, "small data is read, whatever its compression ratio"


@pytest.mark.fault("F2-6")
@pytest.mark.parametrize("nested", [False, True])
def test_a_table_that_repeats_one_long_text_in_every_row_is_read_row_by_row(nested: bool, tmp_path: Path):
    text = "How do I water a fern? " * 400_000  # 9 MB
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), pa.array([text]))
    column = pa.ListArray.from_arrays(pa.array(range(257), pa.int32()), repeated) if nested else repeated
    pa.parquet.write_table(pa.table({"prompt": column}), tmp_path / "rows.parquet", store_schema=False)
    assert (tmp_path / "rows.parquet").stat().st_size < 20 << 20
    before = pa.total_allocated_bytes()
    rows = rows_of(tmp_path / "rows.parquet")
    for number in range(4):
        assert next(rows) == (number, {"prompt": [text] if nested else text})
        assert pa.total_allocated_bytes() - before < 4 * containers.MAX_BATCH_BYTES


@pytest.mark.fault("F2-6")
def test_a_row_too_large_for_memory_is_refused(tmp_path: Path):
    text = "x" * (4 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([text]))
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), repeated)})
    pa.parquet.write_table(table, tmp_path / "rows.parquet", store_schema=False)
    with limited_memory(), pytest.raises(UnsafeError, match="A row of the table expands"):
        next(rows_of(tmp_path / "rows.parquet"))
