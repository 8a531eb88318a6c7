"""Other people's files: every form of row, every container, and bad rows."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ConfigError, DataError, NetworkError
from engine.pairs.assessment.validation import validate
from engine.pairs.data.record import Pair
from engine.pairs.formats.containers import rows_of
from engine.pairs.formats.folders import local_splits
from engine.pairs.formats.pair_forms import PAIR_FORMS
from engine.pairs.formats.prompt_forms import PROMPT_FORMS
from engine.pairs.formats.reading import DEFAULT_READER, NoForm, RowReader, pair_of, read_pairs
from engine.pairs.formats.sources import rows_of_source
from engine.pairs.generation.prompts import read_prompts
from engine.storage.jsonl import BadLine
from tests.conftest import SHARED_DATA
from tui.cli import main

PROMPT = "How do I get red wine out of a wool rug?"
GOOD = "Blot it with cold water and a little vinegar, then let it dry flat away from heat."
BAD = "Just pour bleach on it and scrub hard until it is gone."


def user(text: str = PROMPT) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def transcript(text: str) -> str:
    return f"\n\nHuman: {PROMPT}\n\nAssistant: {text}"


PLAIN = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
ROWS_OF_PAIRS: dict[str, dict[str, Any]] = {
    "orpo-mix": {"chosen": [user(), reply(GOOD)], "rejected": [user(), reply(BAD)], "prompt": PROMPT, "source": "x"},
    "ultrafeedback": {
        "prompt": PROMPT, "chosen": [user(), reply(GOOD)], "rejected": [user(), reply(BAD)],
        "messages": [user(), reply(GOOD)], "score_chosen": 8.5,
    },
    "hh": {"chosen": transcript(GOOD), "rejected": transcript(BAD)},
    "hh with its prompt": {"prompt": f"\n\nHuman: {PROMPT}\n\nAssistant:", "chosen": transcript(GOOD), "rejected": transcript(BAD)},
    "orca": {"system": "", "question": PROMPT, "chosen": GOOD, "rejected": BAD},
    "sharegpt": {
        "conversations": [{"from": "human", "value": PROMPT}],
        "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD},
    },
    "alpaca": {"instruction": PROMPT, "input": "", "chosen": GOOD, "rejected": BAD},
    "alpaca ranking": {"instruction": PROMPT, "input": "", "output": [GOOD, BAD]},
    "trl": {"prompt": [user()], "chosen": [reply(GOOD)], "rejected": [reply(BAD)]},
    "content parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}], "rejected": [reply(BAD)],
    },
    "argilla": {
        "instruction": PROMPT, "generations": [BAD, GOOD], "rating": [2, 5], "input": PROMPT,
        "chosen": [user(), reply(GOOD)], "rejected": [user(), reply(BAD)], "chosen-rating": 5,
    },
    "argilla's responses": {"instruction": PROMPT, "chosen_response": GOOD, "rejected_response": BAD},
    "distilabel": {"instruction": PROMPT, "generations": [BAD, GOOD], "ratings": ["2", "5"]},
    "nectar": {
        "prompt": f"\n\nHuman: {PROMPT}\n\nAssistant: ",
        "answers": [{"answer": "In between.", "rank": 2.0}, {"answer": GOOD, "rank": 1.0}, {"answer": BAD, "rank": 7.0}],
    },
    "ultrafeedback with scores": {
        "instruction": PROMPT, "completions": [{"response": BAD, "overall_score": 3}, {"response": GOOD, "overall_score": 8}],
    },
    "webgpt": {
        "question": {"full_text": PROMPT, "id": "1"}, "answer_0": BAD, "answer_1": GOOD, "score_0": -1.0, "score_1": 1.0,
    },
    "safe-rlhf": {"prompt": PROMPT, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
    "helpsteer2": {"prompt": PROMPT, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
    "helpsteer3": {"context": [user()], "response1": BAD, "response2": GOOD, "overall_preference": 3},
    "shp": {"history": PROMPT, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_ratio": 2.0},
    "arena": {
        "conversation_a": [user(), reply(GOOD)], "conversation_b": [user(), reply(BAD)], "winner": "model_a", "model_a": "m",
    },
    "openai": {
        "input": {"messages": [user()]}, "preferred_output": [reply(GOOD)], "non_preferred_output": [reply(BAD)],
    },
    "stack-exchange": {"question": PROMPT, "response_j": GOOD, "response_k": BAD},
    "alpaca-eval": {"instruction": PROMPT, "output_1": BAD, "output_2": GOOD, "preference": 2.0},
    "summaries": {"info": {"post": PROMPT}, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1},
    "capitals": {"Prompt": PROMPT, "Chosen": GOOD, "Rejected": BAD},
    "scores as texts": {**PLAIN, "chosen_score": "8", "rejected_score": "3"},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_OF_PAIRS)
def test_a_pair_is_the_same_pair_in_every_form(name: str):
    read = pair_of(0, ROWS_OF_PAIRS[name])
    assert isinstance(read, Pair), read
    assert (read.messages, read.revised_response, read.base_response) == ([user()], GOOD, BAD)


@pytest.mark.parametrize("name", ROWS_OF_PAIRS)
def test_the_prompt_of_every_pair_is_a_prompt(name: str):
    assert DEFAULT_READER.prompt(ROWS_OF_PAIRS[name]) == [user()]


def test_a_system_turn_is_prepended_to_the_user_turn():
    read = pair_of(0, {"system": "Be terse.", "question": PROMPT, "chosen": GOOD, "rejected": BAD})
    assert isinstance(read, Pair) and read.messages == [user(f"Be terse.\n\n{PROMPT}")]


def test_the_conversation_before_the_replies_is_kept_in_full():
    before = [user("Hello."), reply("Hi."), user()]
    whole = {"prompt": "Hello.", "chosen": [*before, reply(GOOD)], "rejected": [*before, reply(BAD)]}
    goes_on = {"prompt": [user("Hello.")], "chosen": [*before[1:], reply(GOOD)], "rejected": [*before[1:], reply(BAD)]}
    for row in (whole, goes_on):
        read = pair_of(0, row)
        assert isinstance(read, Pair) and read.messages == before


NO_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "differ before the last turn": (
        {"chosen": [user(), reply("a"), user("b"), reply(GOOD)], "rejected": [user(), reply("c"), user("d"), reply(BAD)]},
        "differ before the last turn",
    ),
    "null": ({**PLAIN, "chosen": [{"role": "assistant", "content": None}]}, "has no text content"),
    "a picture": ({**PLAIN, "chosen": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "not text ('image_url')"),
    "a tool's turn": ({**PLAIN, "prompt": [user(), {"role": "tool", "content": "42"}]}, "the unknown role 'tool'"),
    "alike": ({"prompt": PROMPT, "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}, "have the same score"),
    "one reply": ({"instruction": PROMPT, "output": [GOOD]}, "a pair needs two"),
    "a tie": ({"prompt": PROMPT, "response_a": "a", "response_b": "b", "winner": "tie"}, "neither reply is better"),
    "nothing": ({"a": 1}, "(its columns: a)"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_a_row_that_is_not_a_pair_says_why(row: dict[str, Any], reason: str):
    read = pair_of(3, row)
    assert isinstance(read, BadLine) and read.line == 3 and reason in read.reason


KTO = {"prompt": PROMPT, "completion": GOOD, "label": True}


@pytest.mark.parametrize("row", [KTO, {"messages": [user(), reply(GOOD)], "kto_tag": False}])
def test_a_kto_file_is_refused_as_one(row: dict[str, Any], tmp_path: Path, config):
    with pytest.raises(DataError, match="KTO"):
        validate(write(tmp_path / "kto.jsonl", [row, row]), config())
    assert isinstance(pair_of(1, row), BadLine)


TALK = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": GOOD}]
ROWS_OF_PROMPTS: dict[str, dict[str, Any]] = {
    "sharegpt": {"conversations": TALK},
    "alpaca": {"instruction": PROMPT, "input": "", "output": GOOD},
    "red-team-attempts": {"transcript": transcript(GOOD), "min_harmlessness_score_transcript": 0.5},
    "question": {"question": PROMPT},
    "messages": {"prompt": [user()]},
    "text": {"text": PROMPT},
    "guanaco": {"text": f"### Human: {PROMPT}### Assistant: {GOOD}"},
    "lmsys-chat": {"conversation": [user(), reply(GOOD)]},
    "advbench": {"goal": PROMPT, "target": "Sure"},
    "harmbench": {"Behavior": PROMPT, "FunctionalCategory": "standard"},
    "mt-bench": {"turns": [PROMPT, "And out of silk?"], "category": "writing"},
    "instruction tuning": {"inputs": PROMPT, "targets": GOOD},
    "input": {"input": PROMPT, "output": GOOD},
    "kto": KTO,
}


@pytest.mark.parametrize("name", ROWS_OF_PROMPTS)
def test_a_prompt_is_the_same_prompt_in_every_form(name: str):
    assert DEFAULT_READER.prompt(ROWS_OF_PROMPTS[name]) == [user()]


def test_the_other_columns_of_alpaca_are_read_with_its_instruction():
    row = {
        "instruction": "Sum up.",
        "input": "Bread needs flour.",
        "history": [["Hi.", "Hello."]],
        "system": "Be kind.",
    }
    assert DEFAULT_READER.prompt(row) == [
        user("Be kind.\n\nHi."),
        reply("Hello."),
        user("Sum up.\n\nBread needs flour."),
    ]


def test_a_form_can_be_set_although_the_columns_match_another():
    row = {"question": PROMPT, "text": "An essay.", "prompt": "Template"}
    assert RowReader("question").prompt(row) == [user()]
    assert RowReader("text").prompt(row) == [user("An essay.")]
    with pytest.raises(ValueError, match="'chosen' is missing"):
        RowReader("chosen-rejected").pair({"rejected": BAD, "prompt": PROMPT})


def test_columns_can_be_mapped_and_so_can_nested_ones():
    named = RowReader(columns={"prompt": "ask.text", "chosen": "win", "rejected": "lose"})
    row = {"ask": {"text": PROMPT}, "win": GOOD, "lose": BAD, "messages": [user("Another.")]}
    read = named.pair(row)
    assert (read.messages, read.revised_response, read.base_response) == ([user()], GOOD, BAD)
    assert RowReader(columns={"prompt": "ask.text"}).prompt(row) == [user()]
    with pytest.raises(ValueError, match="the column 'win' of --columns is missing"):
        named.pair({"ask": {"text": PROMPT}})


def test_a_form_that_does_not_exist_names_the_nearest(config):
    with pytest.raises(ConfigError, match="The nearest is alpaca"):
        RowReader.of(config(form="alpacca"))
    with pytest.raises(ConfigError, match="is not NAME=COLUMN"):
        RowReader.of(config(columns="prompt"))


def test_a_row_that_matches_no_form_is_reported_with_its_columns():
    with pytest.raises(NoForm, match="its columns: speed, wheels"):
        DEFAULT_READER.prompt({"wheels": "4", "speed": "2"})


def test_every_form_has_its_own_name():
    names = [form.name for form in (*PAIR_FORMS, *PROMPT_FORMS)]
    assert len(set(names)) == len(names)


# -- containers -------------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": f"How cold is lake {i}, in °C?", "chosen": f"Cold\u2028{i}.", "rejected": 'A "list", of\nlines'}
    for i in range(7)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(rows: list[dict[str, Any]], newline: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",", newline: str = "\r\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(rows: list[dict[str, Any]], group: int = 3) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=group)
    return sink.getvalue()


def arrow(rows: list[dict[str, Any]], kind: str) -> bytes:
    import pyarrow

    made, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    opener: Callable[..., Any] = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with opener(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=3)
    return sink.getvalue()


def zstandard(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)


PLAIN_LINES = lines(ROWS).encode()
CONTAINERS: dict[str, bytes] = {
    "lines.jsonl": PLAIN_LINES,
    "crlf.jsonl": lines(ROWS, "\r\n").encode(),
    "cr.jsonl": lines(ROWS, "\r").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + PLAIN_LINES,
    "utf16.jsonl": lines(ROWS).encode("utf-16"),
    "utf16-be.jsonl": b"\xfe\xff" + lines(ROWS).encode("utf-16-be"),
    "no-mark.jsonl": lines(ROWS).encode("utf-16-le"),
    "utf16.csv": table(ROWS).encode("utf-16"),
    "lines.jsonl.gz": gzip.compress(PLAIN_LINES),
    "lines.jsonl.zst": zstandard(PLAIN_LINES),
    "frames.jsonl.zst": zstandard(PLAIN_LINES[:500]) + zstandard(PLAIN_LINES[500:]),
    "lines.jsonl.bz2": bz2.compress(PLAIN_LINES),
    "lines.jsonl.xz": lzma.compress(PLAIN_LINES),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "minified.json": json.dumps(ROWS, separators=(",", ":")).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "array-utf16.json.gz": gzip.compress(json.dumps(ROWS, indent=2).encode("utf-16")),
    "wrapped.json": json.dumps({"version": "1", "data": ROWS}).encode(),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "lines.json": PLAIN_LINES,
    "table.csv": table(ROWS).encode(),
    "bom.csv": b"\xef\xbb\xbf" + table(ROWS).encode(),
    "semicolons.csv": table(ROWS, ";", "\n").encode(),
    "table.tsv": table(ROWS, "\t", "\n").encode(),
    "table.csv.zst": zstandard(table(ROWS).encode()),
    "table.parquet": parquet(ROWS),
    "no name": parquet(ROWS),
    "packed.parquet.gz": gzip.compress(parquet(ROWS)),
    "table.arrow": arrow(ROWS, "file"),
    "stream.arrow": arrow(ROWS, "stream"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_rows_are_the_same_in_every_container(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(CONTAINERS[name])
    assert list(rows_of(path)) == list(enumerate(ROWS))


@pytest.mark.parametrize("name", ["lines.jsonl.zst", "array.json", "table.parquet", "stream.arrow"])
def test_standard_input_may_be_any_container_with_a_signature(name: str, monkeypatch: pytest.MonkeyPatch):
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(CONTAINERS[name])))  # type: ignore[type-var]
    monkeypatch.setattr("sys.stdin", stdin)
    assert list(rows_of_source(Path("-"))) == list(enumerate(ROWS))


def test_each_line_of_a_text_is_a_prompt_and_so_is_each_text_of_a_list(tmp_path: Path):
    (tmp_path / "p.txt").write_text(f"{PROMPT}\n\n  How do I bake bread?  \r\n")
    (tmp_path / "p.json").write_text(json.dumps([PROMPT, "How do I bake bread?"]))
    for name in ("p.txt", "p.json"):
        read = [DEFAULT_READER.prompt(row) for _, row in rows_of(tmp_path / name) if isinstance(row, dict)]
        assert read == [[user()], [user("How do I bake bread?")]]


def test_a_cell_may_hold_messages_as_json_or_as_a_python_literal(tmp_path: Path):
    row = {"prompt": PROMPT, "chosen": [user(), reply(GOOD)], "rejected": [user(), reply(BAD)]}
    for write_cell in (json.dumps, repr):
        cells = {key: value if isinstance(value, str) else write_cell(value) for key, value in row.items()}
        (tmp_path / "t.csv").write_text(table([cells]))
        assert list(rows_of(tmp_path / "t.csv")) == [(0, row)]


DAMAGED: dict[str, tuple[bytes, str, int]] = {
    "cut.jsonl.gz": (gzip.compress(PLAIN_LINES)[:-30], "compressed data", 0),
    "junk behind.jsonl.gz": (gzip.compress(PLAIN_LINES) + b"\njunk", "compressed data", len(ROWS)),
    "cut.jsonl.zst": (zstandard(PLAIN_LINES)[:-30], "compressed data", 0),
    "cut.json": (json.dumps(ROWS)[:-40].encode(), "not JSON", 6),
    "unclosed.json": (json.dumps(ROWS)[:-1].encode(), "the file is truncated", 7),
    "broken.json": (json.dumps(ROWS).replace('"prompt"', '"prompt', 1).encode(), "not JSON", 0),
    "short.csv": (b"prompt,chosen,rejected\na,b\nc,d,e\n", "it has 2 cells", 1),
    "latin1.csv": ("prompt,chosen\ncafé,b\n".encode("latin-1"), "not valid UTF-8", 0),
    "cut.parquet": (parquet(ROWS)[:-20], "table is damaged", 0),
    "cut.arrow": (arrow(ROWS * 50, "stream")[:-600], "table is damaged", 300),
    "odd.jsonl": (lines(ROWS).encode("utf-16")[:-1], "cut off inside a character", 6),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_reported_and_intact_rows_are_read(name: str, tmp_path: Path):
    data, reason, at_least = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    found = [row for _, row in rows_of(tmp_path / name)]
    bad = [row for row in found if isinstance(row, BadLine)]
    assert bad and any(reason in each.reason for each in bad), found
    assert len(found) - len(bad) >= at_least


def test_a_broken_value_in_an_array_does_not_affect_the_next_one(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": oops}, {"a": {"b": [1, "]"]}}, {"a": Infinity}, 5, {"a": 2}]')
    found = [row if isinstance(row, dict) else row.reason[:8] for _, row in rows_of(tmp_path / "a.json")]
    assert found == [{"a": 1}, "not JSON", {"a": {"b": [1, "]"]}}, {"a": float("inf")}, "not a JS", {"a": 2}]


def test_an_archive_is_refused_as_one(tmp_path: Path):
    (tmp_path / "rows.zip").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ConfigError, match="a ZIP archive or a workbook"):
        list(rows_of(tmp_path / "rows.zip"))


def test_a_folder_has_the_splits_that_its_files_are_named_after(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "test").mkdir()
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"):
        (tmp_path / name).write_bytes(parquet(ROWS))
    (tmp_path / "test" / "data-00000-of-00001.arrow").write_bytes(arrow(ROWS[:2], "stream"))
    (tmp_path / "validation.csv.gz").write_bytes(gzip.compress(table(ROWS[:1]).encode()))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_info.json").write_text("{}")
    found = {name: sum(1 for _ in rows_of_source(tmp_path, name)) for name in local_splits(tmp_path)}
    assert found == {"train": 14, "test": 2, "validation": 1}
    assert [number for number, _ in rows_of_source(tmp_path)] == list(range(17))


# -- in the program ---------------------------------------------------------------------------------------------------


def test_bad_rows_are_counted_and_reported_and_too_many_are_refused(tmp_path: Path, config):
    path = write(tmp_path / "p.jsonl", [{"prompt": PROMPT}, {"prompt": ""}, {"prompt": "How?"}])
    found = read_prompts(config(dataset=str(path), split="train"))
    assert (len(found.prompts), found.bad.count, found.bad.rows) == (2, 1, 3)
    assert found.bad.summary == "row 2: not a prompt: no user turn is waiting for an answer"
    with pytest.raises(DataError, match=r"1 of 3 rows of .* are not prompts: row 2") as refused:
        read_prompts(config(dataset=str(path), split="train", max_bad_rows=0.3))
    assert "--form" in refused.value.what_to_do
    with pytest.raises(DataError, match="3 of 3 rows"):
        read_prompts(config(dataset=str(path), split="train", columns="prompt=asked", max_bad_rows=1.0))


def test_validate_accepts_forms_columns_and_a_share_of_bad_rows(tmp_path: Path, capsys):
    rows = [
        {"q": f"How do I mend thing {i}?", "up": f"Glue {i} gently.", "down": f"Kick thing {i} hard, twice."}
        for i in range(9)
    ]
    path = write(tmp_path / "rows.jsonl", [*rows, {"q": "?"}])
    command = ["validate", str(path), "--min-pairs", "5", "--columns", "prompt=q,chosen=up,rejected=down"]
    assert main(command) == 9
    assert "line 10: not a pair: the column 'up' of --columns is missing" in capsys.readouterr().out
    assert main([*command, "--max-bad-rows", "0.1"]) == 0
    assert main([*command, "--max-bad-rows", "0.05"]) == 9


def test_a_dataset_that_does_not_exist_on_the_hub_is_reported(monkeypatch: pytest.MonkeyPatch, config):
    def nowhere(**where: Any) -> Any:
        raise ConnectionError("no way")

    monkeypatch.setattr("datasets.load_dataset", nowhere)
    with pytest.raises(NetworkError):
        validate(Path("nobody/nothing"), config())


CASES = SHARED_DATA.parent / "cases"
REFUSED = {
    "c07_kto.jsonl": "KTO",
    "c13_diverging.jsonl": "differ before the last turn",
    "c14_null.jsonl": "has no text content",
}
PAIRS_IN = {"c13_diverging.jsonl": 0, "c21.parquet": 2}


@pytest.mark.parametrize("number", range(1, 23))
def test_the_collected_preference_files_are_read_as_expected(number: int):
    path = case(f"c{number:02}*")
    try:
        found = [read for _, read in read_pairs(path)]
    except DataError as error:
        assert REFUSED[path.name] in error.what
        return
    pairs = [read for read in found if isinstance(read, Pair)]
    bad = [read.reason for read in found if isinstance(read, BadLine)]
    assert len(pairs) == PAIRS_IN.get(path.name, 1)
    assert all(read.prompt.endswith(PROMPT) and read.revised_response == GOOD for read in pairs)
    assert len(bad) == (path.name in REFUSED) and all(REFUSED[path.name] in reason for reason in bad)


@pytest.mark.parametrize("number", range(1, 10))
def test_the_collected_prompt_files_are_read_as_expected(number: int, config):
    path = case(f"d{number:02}*")
    found = read_prompts(config(dataset=str(path), split="train"))
    assert len(found.prompts) == (1 if number in (3, 6) else 2) and found.bad.count == (number == 1)
    assert any(PROMPT in prompt.messages[0]["content"] for prompt in found.prompts)


def case(pattern: str) -> Path:
    found = sorted(CASES.glob(pattern))
    if not found:
        pytest.skip("the collected files are not on this machine")
    return found[0]


@pytest.mark.parametrize("name", ["jsonl", "json", "csv", "txt", "parquet", "arrow", "jsonl.gz", "jsonl.zst"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path):
    def peak(count: int) -> int:
        rows = [{"prompt": f"{i} " + "x" * 2000} for i in range(count)]
        text = lines(rows).encode()
        data = {
            "json": json.dumps(rows).encode(), "csv": table(rows).encode(), "parquet": parquet(rows, 500), "txt": text,
            "arrow": arrow(rows, "stream"), "jsonl": text, "jsonl.gz": gzip.compress(text), "jsonl.zst": zstandard(text),
        }  # fmt: skip
        path = tmp_path / f"rows.{name}"
        path.write_bytes(data[name])
        del rows, text, data
        tracemalloc.start()
        try:
            assert sum(1 for _ in rows_of(path)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(600)
    assert peak(4000) < 1.5 * peak(1000)
