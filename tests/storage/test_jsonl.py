from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from engine.core.errors import DiskError
from engine.storage.jsonl import BadLine, JsonlAppender, dumps, read_jsonl

RECORDS = [{"id": "a", "text": "ünï\u2028code"}, {"id": "b", "text": "two\nlines"}, {"id": "c", "n": 1.5}]


def written(path: Path) -> bytes:
    with JsonlAppender(path) as appender:
        for record in RECORDS:
            appender.append(record)
    return path.read_bytes()


def test_appended_records_are_read_back(tmp_path: Path):
    written(tmp_path / "x.jsonl")
    assert [row for _, row in read_jsonl(tmp_path / "x.jsonl")] == RECORDS


@pytest.mark.fault("C1")
def test_cut_at_any_byte_complete_lines_are_kept_and_the_tail_is_set_aside(tmp_path: Path):
    whole = written(tmp_path / "x.jsonl")
    for cut in range(len(whole)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert [row for _, row in read_jsonl(path)] == RECORDS[:complete]
        with JsonlAppender(path) as appender:
            appender.append({"id": "next"})
        assert [row for _, row in read_jsonl(path)] == [*RECORDS[:complete], {"id": "next"}]
        tail = whole[:cut].rpartition(b"\n")[2]
        assert appender.torn == len(tail)
        if tail:
            assert appender.torn_path.read_bytes() == tail


@pytest.mark.fault("B1")
def test_a_full_disk_leaves_only_complete_lines(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    before = written(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with JsonlAppender(path) as appender:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
            with pytest.raises(DiskError, match="Cannot write"):
                appender.append({"id": "a record that does not fit any more"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before


@pytest.mark.fault("C2")
def test_bad_lines_are_reported_and_the_others_read(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\nnot json\n[1]\n{"x": NaN}\n{"deep": ' + b"[" * 100_000 + b'\n{"b": 2}\n'
    )
    rows = dict(read_jsonl(path))
    assert rows[0] == {"a": 1} and rows[6] == {"b": 2}
    assert [number for number, row in rows.items() if isinstance(row, BadLine)] == [2, 3, 4, 5]


@pytest.mark.fault("C4")
def test_a_lone_surrogate_is_written_and_nan_is_refused():
    assert json.loads(dumps({"x": "\ud800"})) == {"x": "\ud800"}
    with pytest.raises(ValueError):
        dumps({"x": float("nan")})


def test_children_do_not_inherit_the_file(tmp_path: Path):
    with JsonlAppender(tmp_path / "x.jsonl") as appender:
        assert not os.get_inheritable(appender._file)
