from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from engine.core.errors import ConfigError, DataError
from engine.models.chat import Conversation
from engine.pairs.formats.reading import DEFAULT_READER
from engine.pairs.formats.sources import parse_split, slice_of
from engine.pairs.generation.prompts import load_prompts, read_prompts

HH = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: How do I sharpen a knife?\n\nAssistant: On a stone."


def dataset(path: Path, rows: int) -> Path:
    lines = "".join(
        json.dumps({"chosen": f"\n\nHuman: Question {i}?\n\nAssistant: No.", "rejected": ""}) + "\n"
        for i in range(rows)
    )
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def conversation_of(row: dict) -> Conversation:
    return DEFAULT_READER.prompt(row)


def asked(prompts: list) -> set[str]:
    return {prompt.text for prompt in prompts}


def test_the_full_conversation_before_the_last_answer_is_kept():
    assert conversation_of({"chosen": HH}) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How do I sharpen a knife?"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?"},
        {"prompt": [{"role": "user", "content": "Why?"}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:"},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: x"},
    ],
)
def test_every_common_kind_of_row_is_read(row: dict):
    assert conversation_of(row) == [{"role": "user", "content": "Why?"}]


def test_a_system_turn_is_prepended_since_gemma_has_no_system_role():
    row = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]}
    assert conversation_of(row) == [{"role": "user", "content": "Be kind.\n\nWhy?"}]


def test_consecutive_turns_of_one_speaker_are_joined():
    row = {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"}
    assert conversation_of(row) == [{"role": "user", "content": "a\n\nb"}]


@pytest.mark.parametrize("row", [{"chosen": ""}, {"label": "x"}, {"messages": []}, {"prompt": "  "}, {"prompt": 3}, {}])
def test_a_row_without_a_prompt_is_refused(row: dict):
    with pytest.raises(ValueError):
        conversation_of(row)


def test_splits_are_sums_of_slices():
    terms = parse_split("test[:1000]+train[10%:20%]")
    assert [slice_of(term, 2000) for term in terms] == [slice(None, 1000), slice(200, 400)]
    assert slice_of(parse_split("train[-5:]")[0], 7) == slice(-5, None)


@pytest.mark.parametrize("expression", ["", "train[", "train[:5", "train]5[", "train+", "train[a:b]"])
def test_an_invalid_split_says_how_to_write_one(expression: str):
    with pytest.raises(ConfigError, match="is not a valid split"):
        parse_split(expression)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_local_file_is_one_split_named_train(name: str, tmp_path: Path, config):
    path = dataset(tmp_path / name, 10)
    prompts = load_prompts(config(dataset=str(path), split="train[2:6]"))
    assert asked(prompts) == {f"Question {i}?" for i in range(2, 6)}
    with pytest.raises(ConfigError, match="has no split 'test'"):
        load_prompts(config(dataset=str(path), split="test"))


def test_the_default_split_takes_all_rows_of_another_dataset_that_lacks_it(tmp_path: Path, config):
    file, folder = tmp_path / "questions.jsonl", tmp_path / "sets"
    folder.mkdir()
    rows = [json.dumps({"prompt": f"Question {number}?"}) + "\n" for number in range(4)]
    file.write_text("".join(rows))
    (folder / "validation.jsonl").write_text("".join(rows[:1]))
    (folder / "train.jsonl").write_text("".join(rows[2:]))
    assert len(load_prompts(config(dataset=str(file)))) == 4
    found = read_prompts(config(dataset=str(folder)))
    assert (len(found.prompts), found.split) == (3, "train+validation")
    (folder / "test.jsonl").write_text("".join(rows[1:2]))
    assert read_prompts(config(dataset=str(folder))).split == "test[:1000]+train[:1500]"


def test_a_folder_has_one_split_per_file(tmp_path: Path, config):
    dataset(tmp_path / "train.jsonl", 3)
    dataset(tmp_path / "test.jsonl.gz", 4)
    prompts = load_prompts(config(dataset=str(tmp_path), split="test[:1]+train[2:]"))
    assert asked(prompts) == {"Question 0?", "Question 2?"}


@pytest.mark.fault("C7")
def test_order_follows_the_seed_and_duplicates_count_once(tmp_path: Path, config):
    path = dataset(tmp_path / "rows.jsonl", 50)
    path.write_text(path.read_text() * 2)
    first, again, other = (load_prompts(config(dataset=str(path), split="train", seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 50 and asked(first) == asked(other)


def test_a_damaged_line_is_reported_and_the_rest_is_read(tmp_path: Path, config):
    path = dataset(tmp_path / "rows.jsonl", 2)
    path.write_text(path.read_text() + "oops\n")
    found = read_prompts(config(dataset=str(path), split="train"))
    assert len(found.prompts) == 2 and found.bad.count == 1 and found.bad.summary.startswith("row 3: not JSON")
    with pytest.raises(DataError, match="row 3: not JSON"):
        load_prompts(config(dataset=str(path), split="train", max_bad_rows=0.3))
