"""`validate --export --push-dataset`: the training set, in a private dataset on the Hub with a card."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from huggingface_hub import constants

from engine.push import request_limits
from tests.support.fake_hub_push import FakeHubPush, Repo, fake_hub_push
from tests.support.good_pairs import row, write_rows
from tui.cli import main

CANARY = "hf_" + "CanaryCanaryCanaryCanaryCanary0001"
REPO = "someone/pairs"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHubPush]:
    monkeypatch.setattr(request_limits, "TRIES", 1)
    monkeypatch.setattr(request_limits, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with fake_hub_push() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", map(row, range(6)))


def push(pairs: Path, name: str = "train.parquet", *more: str) -> int:
    to = pairs.with_name(name)
    return main(["validate", str(pairs), "--min-pairs", "4", "--export", str(to), "--push-dataset", REPO, *more])


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_the_training_set_is_pushed_to_a_private_dataset_with_a_card(name: str, pairs: Path, hub: FakeHubPush, capsys):
    assert push(pairs, name) == 0
    printed = capsys.readouterr()
    repo = hub.repos[REPO]
    assert repo.private and len(repo.commits) == 1
    data_file = f"data/train.{name.partition('.')[2]}"
    assert sorted(repo.files) == ["README.md", data_file]
    assert repo.files[data_file] == pairs.with_name(name).read_bytes()
    card = repo.files["README.md"].decode()
    assert f"path: {data_file}" in card and f'load_dataset("{REPO}"' in card and "| pairs in this dataset | 6 |" in card
    assert "| made from | pairs.jsonl |" in card and str(pairs.parent) not in card
    assert all("/datasets/" in request.other_headers for request in hub.requests if request.step in ("info", "commit"))
    assert CANARY not in printed.out + printed.err and "pushed" in printed.err
    assert push(pairs, name, "--force") == 0
    assert len(repo.commits) == 1 and "already has all files" in capsys.readouterr().err


def test_trl_can_load_the_parquet_file(pairs: Path, hub: FakeHubPush):
    assert push(pairs) == 0
    table = pyarrow.parquet.read_table(io.BytesIO(hub.repos[REPO].files["data/train.parquet"]))
    first = table.to_pylist()[0]
    assert set(first) == {"prompt", "chosen", "rejected"} and table.num_rows == 6
    assert first["chosen"] == [{"role": "assistant", "content": row(0)["revised_response"]}]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_pushed_while_the_gate_is_shut_or_to_a_public_dataset(pairs: Path, hub: FakeHubPush, capsys):
    assert push(pairs, "train.parquet", "--min-pairs", "40") == 9
    gc.collect()  # a Parquet writer that was left open would complain here
    assert hub.requests == []
    hub.repos[REPO] = Repo(private=False)
    assert push(pairs) == 12
    assert hub.repos[REPO].commits == [] and "public" in capsys.readouterr().err
    assert push(pairs, "train.parquet", "--force", "--push-public") == 0
    assert len(hub.repos[REPO].commits) == 1


def test_a_secret_in_a_pair_is_found_in_a_packed_file_too(pairs: Path, hub: FakeHubPush, capsys):
    write_rows(pairs, [*map(row, range(6)), row(7, revised_response="Say hf_abcdefghijklmnopqrstuvwxyz012345 to it.")])
    assert push(pairs) == 12
    assert hub.repos == {} and "hf_abc" not in capsys.readouterr().err


def test_a_push_without_an_export_names_the_missing_option(pairs: Path, hub: FakeHubPush, capsys):
    assert main(["validate", str(pairs), "--push-dataset", REPO]) == 2
    assert "--export" in capsys.readouterr().err


def test_json_output_stays_one_document(pairs: Path, hub: FakeHubPush, capsys):
    assert push(pairs, "train.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["export"]["written"]
