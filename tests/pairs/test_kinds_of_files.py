"""More kinds of files: messages stored as text, rows nested in rows, documents around rows, and files without rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ConfigError
from engine.pairs.data.record import Pair
from engine.pairs.data.rendered import rendered_turns, without_end_marks
from engine.pairs.formats.containers import rows_of
from engine.pairs.formats.folders import local_splits
from engine.pairs.formats.reading import DEFAULT_READER, pair_of
from engine.storage.jsonl import MAX_LINE_BYTES, BadLine
from tui.cli import main

PROMPT = "How do I get red wine out of a wool rug?"
GOOD = "Blot it with cold water and a little vinegar, then let it dry flat away from heat."
BAD = "Just pour bleach on it and scrub hard until it is gone."
USER, BETTER, WORSE = (
    {"role": role, "content": text} for role, text in (("user", PROMPT), ("assistant", GOOD), ("assistant", BAD))
)
ROW = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}

PAIRS: dict[str, dict[str, Any]] = {
    "messages as JSON": {"chosen": json.dumps([USER, BETTER]), "rejected": json.dumps([USER, WORSE])},
    "messages as numpy prints them": {**ROW, "chosen": f"[{USER}\n {BETTER}]", "rejected": f"[{USER}\n {WORSE}]"},
    "lists of one text": {"prompt": [PROMPT], "chosen": [GOOD], "rejected": [BAD]},
    "objects with a text": {"prompt": {"text": PROMPT}, "chosen": {"content": GOOD}, "rejected": {"value": BAD}},
    "sender and text": {
        "conversation": [{"sender": "user", "text": PROMPT}],
        "good": {"sender": "assistant", "text": GOOD}, "bad": {"sender": "assistant", "text": BAD},
    },
    "a bare reply beside messages": {"messages": [USER, BETTER], "rejected_response": BAD},
    "ms-swift": {"messages": [USER, BETTER], "rejected_messages": [USER, WORSE]},
    "torchtune": {"chosen_conversations": [USER, BETTER], "rejected_conversations": [USER, WORSE]},
    "accepted": {"question": PROMPT, "accepted": GOOD, "rejected": BAD},
    "ChatML": {"prompt": f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n", "chosen": f"{GOOD}<|im_end|>\n",
               "rejected": f"{BAD}</s>"},
    "Llama 2": {"prompt": f"<s>[INST] {PROMPT} [/INST]", "chosen": GOOD, "rejected": BAD},
    "a judge that failed": {"instruction": PROMPT, "generations": [BAD, "?", GOOD, "!"], "ratings": [2, None, 5, float("nan")]},
    "a NaN of pandas": {"prompt": float("nan"), "question": PROMPT, "responses": [BAD, GOOD], "scores": [1, 2]},
    "reward models": {"prompt": PROMPT, "all_generated_responses": [BAD, GOOD], "all_rm_scores": [0.1, 0.9]},
    "a decimal comma": {"prompt": PROMPT, "response_a": GOOD, "response_b": BAD, "score_a": "8,5", "score_b": "3,0"},
    "judgebench": {"question": PROMPT, "response_A": BAD, "response_B": GOOD, "label": "B>A"},
    "ppe": {"prompt": PROMPT, "response_1": GOOD, "response_2": BAD, "winner": "model_a"},
    "label studio": {"prompt": PROMPT, "answer1": BAD, "answer2": GOOD, "comparison": {"selected": "right"}},
    "kaggle": {"prompt": [PROMPT], "response_a": [BAD], "response_b": [GOOD], "winner_model_a": "0", "winner_model_b": "1"},
    "oasst": {"prompt": {"text": PROMPT, "replies": [{"text": BAD, "rank": 1}, {"text": GOOD, "rank": 0}, {"text": "?"}]}},
    "h4": {"question": PROMPT, "answers": [{"text": BAD, "pm_score": 0}, {"text": GOOD, "pm_score": 5}]},
    "argilla": {"fields": {"instruction": PROMPT, "chosen": GOOD, "rejected": BAD}, "responses": {"q": [{"value": 1}]}},
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_read_whatever_a_tool_wraps_around_it(name: str):
    read = pair_of(0, PAIRS[name])
    assert isinstance(read, Pair), read
    assert (read.messages, read.revised_response, read.base_response) == ([USER], GOOD, BAD)


def test_scores_that_contradict_the_columns_shut_the_gate(tmp_path: Path, capsys):
    rows = [
        {"prompt": f"How cold is lake {i}?", "chosen": f"Lake {i} is cold.", "rejected": f"I like the lake {i} a lot.",
         "score_chosen": "2", "score_rejected": 9.5}
        for i in range(9)
    ]  # fmt: skip
    (tmp_path / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["validate", str(tmp_path / "swapped.jsonl"), "--min-pairs", "5"]) == 9
    printed = capsys.readouterr()
    assert "improved share is 0.0% (at least 60.0%)" in printed.err and "by the file's own scores" in printed.out


def test_equal_and_missing_scores_are_ignored():
    for scores in ({"score_chosen": 5, "score_rejected": 5}, {"chosen_rating": None, "rejected_rating": 2}):
        read = pair_of(0, {**ROW, **scores})
        assert isinstance(read, Pair) and (read.base_score, read.revised_score) == (None, None)


NONE = {
    "duckdb": ({**ROW, "chosen": "[{'role': user, 'content': hi}]"}, "neither JSON nor Python"),
    "several": ({**ROW, "rejected": [BAD, "b"]}, "a list of 2 texts"),
    "prompts": ({**ROW, "prompt": ["a", "b"]}, "prompt is a list of 2 texts"),
    "a number": ({"prompt": "a", "response_1": "b", "response_2": "c", "preference": 1}, "it names neither reply"),
    "a tie": ({"prompt": "a", "response_A": "b", "response_B": "c", "label": "A=B"}, "it names neither reply"),
    "no score": ({"prompt": "a", "completions": [{"text": "b", "score": 1}, {"text": "c"}]}, "1 of completions have"),
    "thousands": (
        {"prompt": "a", "response_a": "b", "response_b": "c", "score_a": "8,500", "score_b": 3},
        "not a number",
    ),
    "pictures": ({**ROW, "prompt": f"<image>{PROMPT}", "images": ["a.png"]}, "in its column images"),
    "nothing to see": ({**ROW, "prompt": "\u200b\u200d \ufeff"}, "no user turn is waiting"),
    "a system turn": ({**ROW, "prompt": [{"role": "system", "content": "S"}]}, "only a system turn"),
    "bytes": ({**ROW, "chosen": b"\xff"}, "chosen is bytes"),
}


@pytest.mark.parametrize("name", NONE)
def test_a_row_that_cannot_be_read_gives_the_reason(name: str):
    row, reason = NONE[name]
    read = pair_of(0, row)
    assert isinstance(read, BadLine) and reason in read.reason


PROMPTS: dict[str, dict[str, Any]] = {
    "lima": {"conversations": [PROMPT, GOOD]},
    "capybara": {"conversation": [{"input": PROMPT, "output": GOOD}]},
    "openai's batch": {"custom_id": "1", "body": {"model": "m", "messages": [USER]}},
    "arena-hard": {"turns": [{"content": PROMPT}], "category": "x"},
    "no picture": {"prompt": PROMPT, "images": []},
    "real-toxicity": {"prompt": {"text": PROMPT, "toxicity": None}},
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_read_whatever_a_tool_wraps_around_it(name: str):
    assert DEFAULT_READER.prompt(PROMPTS[name]) == [USER]


def test_dollys_context_belongs_to_its_instruction():
    assert DEFAULT_READER.prompt({"instruction": "Sum up.", "context": "Bread."})[0]["content"] == "Sum up.\n\nBread."


def test_a_reply_from_openassistant_is_not_a_prompt():
    with pytest.raises(ValueError, match="its role is assistant"):
        DEFAULT_READER.prompt({"text": GOOD, "role": "assistant"})
    assert DEFAULT_READER.prompt({"text": PROMPT, "role": "prompter"}) == [USER]


TALK = [("user", "S\n\nA"), ("assistant", "B"), ("user", "C"), ("assistant", "")]
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "llama 2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B </s><s>[INST] C [/INST]",
    "llama 3": "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}{'<|eot_id|>' if text else ''}" for role, text in TALK
    ),
    "gemma": "<bos><start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n<start_of_turn>user\nC"
    "<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nA</s>\n<|assistant|>\nB</s>\n<|user|>\nC</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_conversation_rendered_by_a_template_is_parsed_into_turns(name: str):
    assert [(turn["role"], turn["content"]) for turn in rendered_turns(RENDERED[name]) or ()] == TALK


def test_a_text_that_mentions_marks_is_still_a_text():
    assert rendered_turns("What is <|im_start|>user\n for?") is None
    assert without_end_marks("It ends with </s>, see. ") == "It ends with </s>, see. "


# -- containers -------------------------------------------------------------------------------------------------------


def quoted(*cells: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


COLUMNS = list(ROW)
FILES: dict[str, bytes] = {
    "viewer.json": json.dumps({"features": [{"name": "x"}], "rows": [{"row_idx": i, "row": ROW} for i in (0, 1)]}).encode(),
    "split.json": json.dumps({"columns": COLUMNS, "index": [0, 1], "data": [list(ROW.values())] * 2}).encode(),
    "columns.json": json.dumps({name: {"0": text, "1": text} for name, text in ROW.items()}).encode(),
    "index.json": json.dumps({"0": ROW, "1": ROW}).encode(),
    "table.json": json.dumps({"schema": {"fields": []}, "data": [ROW, ROW]}, indent=1).encode(),
    "lists.json": json.dumps({name: [text, text] for name, text in ROW.items()}).encode(),
    "meta.json": json.dumps({"meta": {"v": 1}, "pairs": [ROW, ROW]}).encode(),
    "spaces.csv": ('"prompt", "chosen", "rejected"\n' + f'"{PROMPT}", "{GOOD}", "{BAD}"\n' * 2).encode(),
    "commas.json": f"{json.dumps(ROW)},\n{json.dumps(ROW)}".encode(),
    "together.json": json.dumps(ROW).encode() * 2,
    "pretty.jsonl": (json.dumps(ROW, indent=2) + "\n").encode() * 2,
    "nan.jsonl": f"{json.dumps({**ROW, 'score': float('nan')})}\n".encode() * 2,
    "utf32.jsonl": f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n".encode("utf-32"),
    "lines.txt": f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n".encode(),
    "unicode-text.txt": "\r\n".join("\t".join(cells) for cells in (COLUMNS, *[ROW.values()] * 2)).encode("utf-16"),
    "excel.csv": b"sep=;\r\n" + quoted(*COLUMNS).replace(",", ";").encode() + ";".join(ROW.values()).encode() + b"\n"
    + ";".join(ROW.values()).encode(),
    "blank.csv": ("\n\n" + quoted(*COLUMNS) + quoted(*ROW.values()) * 2).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_two_pairs_are_found_in(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(FILES[name])
    pairs = [pair_of(number, row) for number, row in rows_of(tmp_path / name) if isinstance(row, dict)]
    assert [isinstance(pair, Pair) and pair.revised_response for pair in pairs] == [GOOD, GOOD]


def test_one_pair_over_many_lines_is_one_row(tmp_path: Path):
    row = {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=2))
    assert list(rows_of(tmp_path / "one.json")) == [(0, row)]


def test_a_large_document_is_streamed_even_with_an_object_before_the_rows(tmp_path: Path):
    rows = [{**ROW, "pad": "x" * (MAX_LINE_BYTES // 2)}] * 3
    (tmp_path / "large.json").write_text(json.dumps({"info": {"by": "us [1]"}, "data": rows}))
    assert sum(isinstance(row, dict) for _, row in rows_of(tmp_path / "large.json")) == 3


def test_a_missing_value_is_none_and_duplicate_column_names_are_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text("prompt,chosen,rejected\nWhy?,NULL,b\n")
    assert list(rows_of(tmp_path / "t.csv")) == [(0, {"prompt": "Why?", "chosen": None, "rejected": "b"})]
    (tmp_path / "t.csv").write_text("prompt,chosen,chosen\nWhy?,a,b\n")
    with pytest.raises(ConfigError, match="two columns named 'chosen'"):
        list(rows_of(tmp_path / "t.csv"))


def test_text_files_about_the_data_are_not_prompts(tmp_path: Path):
    for name in ("train.jsonl", "LICENSE.txt", "requirements.txt"):
        (tmp_path / name).write_text(json.dumps(ROW))
    assert list(local_splits(tmp_path)) == ["train"]


def test_a_quote_escaped_with_a_backslash_is_a_quote(tmp_path: Path):
    (tmp_path / "spark.csv").write_text('prompt,chosen\n"Who said \\"hi\\" first?","a, b"\n')
    assert list(rows_of(tmp_path / "spark.csv")) == [(0, {"prompt": 'Who said "hi" first?', "chosen": "a, b"})]


def test_bytes_in_parquet_become_texts_and_pictures_are_kept(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    row = {"prompt": PROMPT.encode(), "turns": [{"content": GOOD.encode()}], "picture": b"\x89PNG\xff"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "spark.parquet")
    read = {"prompt": PROMPT, "turns": [{"content": GOOD}], "picture": b"\x89PNG\xff"}
    assert list(rows_of(tmp_path / "spark.parquet")) == [(0, read)]


NO_ROWS = {
    "a.zip": (b"PK\x03\x04", "a ZIP archive"), "a.tar": (b"\0" * 257 + b"ustar", "tar archive"), "a.yaml": (b"- a", "is YAML"),
    "a.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), "a.jsonl": (b"\n<!DOCTYPE html>", "a web page"),
    "a.lz4": (b"\x04\x22\x4d\x18", "LZ4"), "a.pdf": (b"%PDF-1.7", "a PDF"), "a.db": (b"SQLite format 3\0", "SQLite"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ROWS)
def test_a_file_that_holds_no_rows_is_refused_by_what_it_is(name: str, tmp_path: Path):
    data, what = NO_ROWS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=what):
        list(rows_of(tmp_path / name))


def test_a_file_without_pairs_is_reported_as_such_rather_than_by_its_gate(tmp_path: Path, capsys):
    (tmp_path / "sft.jsonl").write_text(json.dumps({"Frage": PROMPT, "Antwort": GOOD}) + "\n")
    assert main(["validate", str(tmp_path / "sft.jsonl")]) == 9
    printed = capsys.readouterr()
    assert "None of the 1 rows" in printed.err and "its columns: Antwort, Frage" in printed.err
    assert "--columns prompt=" in printed.err and "usable share" not in printed.out + printed.err
