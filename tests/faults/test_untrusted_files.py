"""Untrusted files that crash or hang the library that reads them, or exhaust its memory: a child checks them first, and
the run continues or reports why it cannot.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from engine.core.errors import ExitCode, UnsafeError
from engine.models.adapters.expected_tensors import read_base_config
from engine.models.oversized import refuse_oversized
from engine.models.tokenizer_probe import probe_tokenizer
from engine.pairs.formats.containers import rows_of
from engine.process import crash_check
from engine.process.crash_check import check_in_child
from engine.storage.jsonl import BadLine
from tests.support.tiny_models import build_base

REMEDY = "Check where it comes from."


# -- the child ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def check_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Checks a file with a module whose `crash_check` runs this code."""
    (tmp_path / "file").write_bytes(b"what a stranger wrote")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def check(body: str, library: str = "json") -> None:
        (tmp_path / "checker.py").write_text(f"import os, signal, sys, time\ndef crash_check():\n    {body}\n")
        with (tmp_path / "file").open("rb") as file:
            file.read(7)  # the child has a file offset of its own
            check_in_child("checker", library, file, "a\x1b[2J file", remedy=REMEDY)
            assert file.tell() == 7

    return check


@pytest.mark.parametrize("how", ["os.abort()", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_file_that_crashes_its_library_is_refused_and_the_signal_is_named(
    how: str, check_with: Callable[[str], None]
):
    with pytest.raises(UnsafeError, match="crashes the library") as refused:
        check_with(how)
    assert refused.value.exit_code == ExitCode.UNSAFE and REMEDY in refused.value.what_to_do
    assert "ended by SIG" in refused.value.why and "\x1b" not in str(refused.value)


def test_a_file_that_hangs_its_library_is_refused_even_if_sigterm_is_ignored(
    check_with: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(crash_check, "CHECK_SECONDS", 2.0)
    monkeypatch.setattr("engine.process.kill.GRACE_SECONDS", 0.2)
    with pytest.raises(UnsafeError, match="hangs the library"):
        check_with("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")


def test_a_python_exception_is_not_a_crash_and_a_file_is_checked_only_once(check_with: Callable[[str], None]):
    check_with("raise ValueError('no table')")
    check_with("os.abort()")  # not checked again


def test_a_crash_while_the_library_is_imported_is_not_the_files_fault(
    check_with: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "broken.py").write_text("import os\nos.abort()\n")
    check_with("os.abort()", "broken")
    assert "was not checked in a child process: ended by SIGABRT" in caplog.text
    with pytest.raises(UnsafeError):
        check_with("os.abort()")  # the file still counts as not checked


def test_the_child_reads_the_file_from_its_start_and_has_a_memory_limit(check_with: Callable[[str], None]):
    check_with(
        "import resource; from engine.process.crash_check import checked_file, CHECK_MEMORY_BYTES as limit; "
        "passed = checked_file().read() == b'what a stranger wrote' and resource.getrlimit(resource.RLIMIT_AS)[0] == limit; "
        "passed or os.abort()"
    )


# -- tables ------------------------------------------------------------------------------------------------------------

PROMPT = "How do I mend it?"


def arrow(kind: str) -> bytes:
    sink, table = io.BytesIO(), pa.table({"prompt": [PROMPT] * 64})
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_table_with_invalid_offsets_is_damaged_and_not_read_there(kind: str, tmp_path: Path):
    """Without the check, pyarrow reads wherever the offsets point, and the process dies."""
    right = struct.pack("<65i", *range(0, 65 * len(PROMPT), len(PROMPT)))
    wrong = struct.pack("<65i", 0, *[0x7FFFFFF0] * 64)
    assert arrow(kind).count(right) == 1
    (tmp_path / "rows.arrow").write_bytes(arrow(kind).replace(right, wrong))
    ((_, bad),) = rows_of(tmp_path / "rows.arrow")
    assert isinstance(bad, BadLine) and "damaged from here on" in bad.reason and "offset" in bad.reason


def test_a_table_is_checked_in_a_child_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checked: list[Any] = []
    monkeypatch.setattr(
        "engine.pairs.formats.tables.check_in_child", lambda *arguments, **options: checked.append(arguments[3])
    )
    pa.parquet.write_table(pa.table({"prompt": [PROMPT]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.arrow").write_bytes(arrow("file"))
    for name in ("rows.parquet", "rows.arrow"):
        assert next(rows_of(tmp_path / name)) == (0, {"prompt": PROMPT})
    assert checked == ["rows.parquet", "rows.arrow"]


# -- tokenizers, configurations ----------------------------------------------------------------------------------------


def tokenizer_with(folder: Path, **changes: Any) -> str:
    build_base(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def test_a_tokenizer_that_never_finishes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each of its forty replacements doubles every letter e."""
    monkeypatch.setattr(crash_check, "CHECK_SECONDS", 3.0)
    monkeypatch.setattr(crash_check, "CHECK_MEMORY_BYTES", 1 << 30)
    monkeypatch.setattr("engine.process.kill.GRACE_SECONDS", 0.2)
    doubling = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    with pytest.raises(UnsafeError, match="the library that reads it") as refused:
        probe_tokenizer(
            tokenizer_with(tmp_path / "base", normalizer={"type": "Sequence", "normalizers": [doubling] * 40}),
            None,
            None,
            "--base-model-id",
        )
    assert "--base-model-id" in refused.value.what_to_do


def test_a_tokenizer_that_aborts_the_process_is_refused(tmp_path: Path):
    huge_padding = {
        "strategy": {"Fixed": 10**13},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    with pytest.raises(UnsafeError, match="crashes the library"):
        probe_tokenizer(
            tokenizer_with(tmp_path / "base", padding={**huge_padding, "pad_token": "<pad>"}),
            None,
            None,
            "--base-model-id",
        )


def test_a_good_tokenizer_and_a_model_without_one_pass(tmp_path: Path):
    folder = build_base(tmp_path / "base")
    probe_tokenizer(str(folder), None, None, "--base-model-id")
    (folder / "tokenizer.json").unlink()
    probe_tokenizer(str(folder), None, None, "--base-model-id")


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "n_layer", "num_experts", "n_routed_experts", "num_local_experts"]
)
def test_a_model_with_a_billion_layers_is_not_built(name: str):
    with pytest.raises(UnsafeError, match=f"{name} = 1,000,000,000"):
        refuse_oversized({"text_config": {name: 10**9}}, "--base-model-id")


def test_the_configuration_of_a_base_model_is_checked_before_anything_is_built(tmp_path: Path, config):
    path = build_base(tmp_path / "base") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**9}))
    with pytest.raises(UnsafeError, match="num_hidden_layers"):
        read_base_config(config(base_model_id=str(tmp_path / "base")))


def test_large_but_realistic_sizes_pass():
    realistic = {
        "vocab_size": 262_144,
        "moe_intermediate_size": 20_000,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 126,
    }
    refuse_oversized(realistic, "--base-model-id")
