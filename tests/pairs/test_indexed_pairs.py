"""Pairs that stay on disk: each equals the one in a list, and a set costs only the memory of its line numbers."""

from __future__ import annotations

import tracemalloc
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.errors import DamagedState
from engine.pairs.data.record import Pair
from engine.pairs.formats.indexed_pairs import IndexedPairs
from engine.pairs.formats.native_lines import native_row
from engine.storage.files import write_atomically
from engine.storage.jsonl import dumps
from engine.storage.lazy import Mapped, take


def pair(number: int, text: str = "Turn it off first.") -> Pair:
    message = {"role": "user", "content": f"How does “{number}” work?"}
    return Pair(f"p{number}", message["content"], [message], f"No. {number}", f"{text} {number}")


def written(path: Path, pairs: list[Pair]) -> Path:
    """With a blank line after each third pair, and characters of several bytes that are not escaped."""
    lines = (dumps(native_row(each)) + "\n" + "\n" * (number % 3 == 2) for number, each in enumerate(pairs))
    path.write_text("".join(lines).replace("\\u201c", "“").replace("\\u201d", "”"), encoding="utf-8")
    return path


def test_each_pair_is_read_from_its_line_as_it_would_train(tmp_path):
    pairs = [pair(number) for number in range(9)]
    lines = array("Q", [0, 2, 4, 10])  # of nine pairs and two blank lines before the last
    found = IndexedPairs(written(tmp_path / "pairs.jsonl", pairs), lines, lambda each: each)
    assert list(found) == [pairs[number] for number in (0, 2, 3, 8)] and len(found) == 4
    assert found[-1] == pairs[8] and found[1:3] == [pairs[2], pairs[3]] and found[0] == pairs[0]


def test_decisions_are_applied_when_a_pair_is_read(tmp_path):
    path = written(tmp_path / "pairs.jsonl", [pair(0), pair(1)])
    found = IndexedPairs(path, array("Q", [1]), lambda each: replace(each, chosen="base"))
    assert found[0] == replace(pair(1), chosen="base")


def test_picked_and_mapped_sequences_read_only_what_is_accessed():
    asked: list[int] = []

    def square(number: int) -> int:
        asked.append(number)
        return number * number

    some = take(Mapped([3, 5, 7, 9], square), array("Q", [2, 0]))
    assert some[0] == 49 and asked == [7]
    assert list(some) == [49, 9] == some[0:2] and some[-1] == 9 and len(some) == 2


def test_a_line_that_is_no_longer_a_pair_is_damage(tmp_path):
    path = written(tmp_path / "pairs.jsonl", [pair(0), pair(1)])
    found = IndexedPairs(path, array("Q", [0, 1]), lambda each: each)
    path.write_bytes(path.read_bytes().replace(b'{"id":"p1"', b'["id":"p1"'))
    with pytest.raises(DamagedState, match="Line 2 of"):
        found[1]
    with pytest.raises(DamagedState, match="shorter than it was"):
        IndexedPairs(path, array("Q", [0, 5]), lambda each: each)


def test_a_large_set_is_not_in_memory(tmp_path):
    texts = 200 * 50_000
    path = written(tmp_path / "pairs.jsonl", [pair(number, "word " * 10_000) for number in range(200)])
    tracemalloc.start()
    try:
        found = IndexedPairs(path, array("Q", [number + number // 3 for number in range(200)]), lambda each: each)
        held = take(found, array("Q", range(199, -1, -1)))
        assert sum(len(each.revised_response) for each in held) > texts
        assert tracemalloc.get_traced_memory()[1] < texts / 10
    finally:
        tracemalloc.stop()


def test_a_file_written_in_pieces_replaces_the_old_one_only_when_complete(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"old\n")

    def pieces():
        yield b"new\n"
        raise ValueError("the second piece")

    with pytest.raises(ValueError, match="the second piece"):
        write_atomically(path, pieces())
    assert path.read_bytes() == b"old\n" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, (line for line in (b"new\n", b"rows\n")))
    assert path.read_bytes() == b"new\nrows\n"
