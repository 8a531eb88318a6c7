"""JSON lines: whatever was written is read back, and so are the complete lines of a file that was damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.storage.jsonl import BadLine, JsonlAppender, dumps, read_jsonl
from tests.properties.values import RECORD

RECORDS = st.lists(RECORD, min_size=1, max_size=5)


def read(path: Path) -> list[Any]:
    return [record for _, record in read_jsonl(path)]


def as_written(records: list[dict[str, Any]]) -> bytes:
    return "".join(dumps(record) + "\n" for record in records).encode()


@given(RECORDS)
def test_appended_records_are_read_back(records: list[dict[str, Any]]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        with JsonlAppender(path) as file:
            for record in records:
                file.append(record, sync=False)
        assert path.read_bytes() == as_written(records)
        assert read(path) == records


@pytest.mark.fault("C1")
@given(RECORDS, RECORD, st.data())
def test_after_a_cut_anywhere_complete_lines_stay_and_the_next_record_follows_them(
    records: list[dict[str, Any]], following: dict[str, Any], data: st.DataObject
):
    written = as_written(records)
    cut = data.draw(st.integers(0, len(written)))
    complete = records[: written[:cut].count(b"\n")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(written[:cut])
        assert read(path) == complete
        with JsonlAppender(path) as file:
            torn = path.with_name("x.torn-1").read_bytes() if file.torn else b""
            file.append(following, sync=False)
        assert as_written(complete) + torn == written[:cut]
        assert read(path) == [*complete, following]


@pytest.mark.fault("C2")
@given(RECORDS, st.data())
def test_flipped_bytes_are_reported_with_their_line_and_other_lines_are_untouched(
    records: list[dict[str, Any]], data: st.DataObject
):
    written = as_written(records)
    flips = data.draw(st.dictionaries(st.integers(0, len(written) - 1), st.integers(1, 255), max_size=4))
    damaged = bytes(byte ^ flips.get(index, 0) for index, byte in enumerate(written))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(damaged)
        found = dict(read_jsonl(path))
    lines = damaged.split(b"\n")[:-1]  # what follows the last newline was never acknowledged
    assert set(found) == {number for number, line in enumerate(lines) if line.strip()}
    assert all(isinstance(record, dict | BadLine) for record in found.values())
    originals = {dumps(record).encode(): record for record in records}
    for number, line in enumerate(lines):
        if line in originals:
            assert found[number] == originals[line]
