"""Training pairs on disk equal those in memory: the same ids, the same fingerprint, and no file is left behind."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest
from datasets import Dataset

from engine.core.errors import DamagedState, DataError
from engine.dpo.training import encoded_pairs
from engine.dpo.training.dataset import EncodedPair, LongPair, drop_long_pairs, load_rows
from engine.dpo.training.encoded_pairs import EncodedPairs, as_dataset_row, fingerprint_of
from engine.storage.files import sha256_of_json
from engine.storage.lazy import JsonLines
from tests.support.tiny_models import pairs as rows
from tests.support.tiny_models import write_rows


def drawn(count: int) -> list[EncodedPair]:
    draw = random.Random(5)

    def ids() -> list[int]:
        return [draw.randrange(300_000) for _ in range(draw.randrange(1, 30))]

    return [EncodedPair(3 * number, ids(), ids(), ids()) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 23])
def test_pairs_on_disk_equal_the_originals(tmp_path: Path, monkeypatch, count: int):
    monkeypatch.setattr(encoded_pairs, "PAIRS_PER_BLOCK", 10)
    pairs = drawn(count)
    kept = EncodedPairs(iter(pairs), tmp_path)
    assert list(kept) == pairs and len(kept) == count and kept[1:4] == pairs[1:4]
    assert list(Dataset(kept.table)) == [as_dataset_row(pair) for pair in pairs]
    assert list(tmp_path.iterdir()) == []  # its file has no name


def test_an_index_out_of_range_is_an_error(tmp_path: Path):
    kept = EncodedPairs(drawn(3), tmp_path)
    assert kept[-1] == drawn(3)[2]
    with pytest.raises(IndexError):
        kept[3]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_fingerprint_equals_that_of_all_pairs_at_once(count: int):
    rest = {"settings": {"seed": 3, "beta": 0.1}, "reference": "ab", "dtype": "torch.float32"}
    plain = [as_dataset_row(pair) for pair in drawn(count)]
    assert fingerprint_of(iter(plain), rest) == sha256_of_json({**rest, "pairs": plain})


def test_pairs_that_are_too_long_are_named_and_left_out():
    pairs, too_long = drawn(12), list[LongPair]()
    limit = sorted(pair.length for pair in pairs)[7]
    assert list(drop_long_pairs(pairs, limit, too_long)) == [pair for pair in pairs if pair.length <= limit]
    assert [long.index for long in too_long] == [pair.index for pair in pairs if pair.length > limit] != []


def test_rows_are_read_from_the_file_on_access(tmp_path: Path):
    path = write_rows(tmp_path / "train.jsonl", rows(5))
    path.write_text("\n" + path.read_text("utf-8").rstrip("\n"), encoding="utf-8")  # a blank line, and no last newline
    loaded = load_rows(path)
    assert list(loaded) == rows(5) and loaded[-1] == rows(5)[-1] and len(loaded) == 5
    path.write_text(path.read_text("utf-8").replace("prompt", "pro\\mpt"), encoding="utf-8")
    with pytest.raises(DamagedState, match="Line 2 of"):
        loaded[0]
    with pytest.raises(DataError, match="Line 2 of"):
        load_rows(path)


def test_a_file_that_became_shorter_is_detected(tmp_path: Path):
    with pytest.raises(DamagedState, match="shorter than it was"):
        JsonLines(write_rows(tmp_path / "train.jsonl", rows(2)), array("Q", [0, 2]))
