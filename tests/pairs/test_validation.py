"""`stage3-tui validate`: any pairs file in any state is assessed to its end in constant memory."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine.core.errors import ConfigError
from engine.pairs.assessment.assess import PairVerdict
from engine.pairs.assessment.validation import Validation, validate
from engine.pairs.data.edits import write_edit
from engine.pairs.data.record import Pair
from engine.pairs.formats.reading import pair_of, read_pairs
from engine.storage.jsonl import MAX_LINE_BYTES, BadLine, dumps, read_jsonl
from tests.conftest import needs_shared_data
from tests.support.good_pairs import META, row, write_rows
from tui.cli import main

Lines = list[PairVerdict | BadLine]


@pytest.fixture
def validated(config) -> Callable[..., tuple[Validation, Lines]]:
    """Validates a file with a gate that opens for four pairs."""

    def validated(path: Path, *, export: Path | None = None, force: bool = False, **options: Any):
        lines: Lines = []
        given = config(**{"min_pairs": 4, **options})
        return validate(path, given, lines.append, export=export, force=force), lines

    return validated


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file with six pairs, which open the gate."""
    return write_rows(tmp_path / "pairs.jsonl", map(row, range(6)))


# -- forms of pairs files ----------------------------------------------------------------------------------------------

P, DRAFT, REVISION = "How cold is it?", "Cold.", "About four degrees."


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


MESSAGES = [message("user", P)]


@pytest.mark.parametrize(
    "foreign_row",
    [
        {"prompt": P, "base_response": DRAFT, "revised_response": REVISION},
        {
            "prompt": P,
            "base_response": DRAFT,
            "revised_response": REVISION,
            "base_score": None,
            "messages": None,
            "id": 7,
        },
        {"prompt": P, "chosen": REVISION, "rejected": DRAFT},
        {"prompt": f"\n\nHuman: {P}\n\nAssistant:", "chosen": f" {REVISION}", "rejected": f" {DRAFT}"},
        {"prompt": MESSAGES, "chosen": [message("assistant", REVISION)], "rejected": [message("assistant", DRAFT)]},
        {"prompt": MESSAGES, "chosen": [message("assistant", REVISION)], "rejected": DRAFT},
        {"chosen": [*MESSAGES, message("assistant", REVISION)], "rejected": [*MESSAGES, message("assistant", DRAFT)]},
        {
            "prompt": P,
            "chosen": [*MESSAGES, message("assistant", REVISION)],
            "rejected": [*MESSAGES, message("assistant", DRAFT)],
        },
        {"chosen": f"\n\nHuman: {P}\n\nAssistant: {REVISION}", "rejected": f"\n\nHuman: {P}\n\nAssistant: {DRAFT}"},
        {"messages": MESSAGES, "chosen": REVISION, "rejected": DRAFT, "margin": 0.3},
    ],
    ids=lambda row: "-".join(f"{key}:{type(value).__name__}" for key, value in row.items()),
)
def test_every_shape_of_a_row_gives_the_same_pair(foreign_row: dict[str, Any]):
    read = pair_of(0, json.loads(dumps(foreign_row)))
    assert isinstance(read, Pair), read
    assert (read.prompt, read.messages) == (P, MESSAGES)
    assert (read.base_response, read.revised_response, read.preferred) == (DRAFT, REVISION, REVISION)


def test_consecutive_assistant_turns_are_one_reply():
    twice = f"\n\nHuman: {P}\n\nAssistant: Well.\n\nAssistant: {REVISION}"
    read = pair_of(0, {"chosen": twice, "rejected": f"\n\nHuman: {P}\n\nAssistant: {DRAFT}"})
    assert isinstance(read, Pair)
    assert (read.messages, read.revised_response) == (MESSAGES, f"Well.\n\n{REVISION}")


def test_a_reply_that_simulates_further_turns_is_not_cut_to_its_last_one():
    leak = "Cold.\n\nHuman: How cold?\n\nAssistant: Very."
    read = pair_of(0, {"prompt": P, "chosen": leak, "rejected": DRAFT})
    assert isinstance(read, Pair) and read.revised_response == leak


def test_our_records_name_the_principles_that_made_the_pair_and_the_notebooks_count_all():
    def made_by(**keys: Any) -> tuple[str, ...]:
        read = pair_of(0, row(1, principle_ids=["a", "b", "c", "d"], **keys))
        assert isinstance(read, Pair)
        return read.made_by

    assert made_by() == ("a", "b", "c", "d")
    assert made_by(attempts=4, made_by=["b", "d"]) == ("b", "d")
    assert made_by(attempts=4, made_by=[]) == ()


NO_PAIRS: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "neither base_response"),
    "without a revision": ({"prompt": P, "base_response": DRAFT}, "'revised_response' is missing"),
    "without a rejected text": ({"prompt": P, "chosen": DRAFT}, "'rejected' is missing"),
    "null": (row(1, prompt=None), "prompt is null"),
    "a number": (row(1, revised_response=3), "revised_response is a number"),
    "a list": (row(1, base_response=["a"]), "base_response is a list"),
    "no score": (row(1, base_score="high"), "base_score is a string"),
    "true as a score": (row(1, base_score=True), "base_score is a boolean"),
    "an unknown choice": (row(1, chosen="maybe"), "chosen must be"),
    "messages without a role": (row(1, messages=[{"content": "a"}]), r"messages\[0\] has no role"),
    "messages without text": (
        row(1, messages=[message("user", P), {"role": "user", "content": None}]),
        r"messages\[1\]",
    ),
    "messages that are an object": (row(1, messages={"role": "user"}), "messages is an object"),
    "messages without a user turn": (row(1, messages=[message("assistant", "Hello.")]), "no user turn"),
    "principles": (row(1, principle_ids="HP1"), "principle_ids is a string"),
    "a principle": (row(1, principle_ids=[None]), "principle_ids is null"),
    "finish": (row(1, finish={"revision": 1}), "finish"),
    "half a character": (row(1, revised_response="half \ud83d"), "a lone surrogate"),
    "an endless status": (row(1, status="x" * 1000), "longer than"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt"),
    "an empty prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "no user turn"),
    "two conversations": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        "different conversations",
    ),
    "the user's last word": ({"chosen": MESSAGES, "rejected": MESSAGES}, "does not end with an assistant message"),
    "no messages": ({"prompt": P, "chosen": [], "rejected": []}, "does not end with an assistant message"),
}


@pytest.mark.fault("C4")
@pytest.mark.parametrize(("bad", "reason"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_a_row_that_is_not_a_pair_says_why(bad: dict[str, Any], reason: str):
    read = pair_of(9, bad)
    assert isinstance(read, BadLine) and read.line == 9
    with pytest.raises(ValueError, match=reason):
        raise ValueError(read.reason)


# -- damage ------------------------------------------------------------------------------------------------------------

LINE = dumps(row(1)).encode()
DAMAGE: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{oops", "not JSON"),
    "a list": (b"[1]", "a list"),
    "null": (b"null", "null"),
    "a text": (b'"hello"', "a string"),
    "NaN": (LINE[:-1] + b',"base_score":NaN}', "finite"),
    "Infinity": (LINE[:-1] + b',"base_score":-Infinity}', "finite"),
    "a number beyond all": (LINE[:-1] + b',"base_score":1e999}', "finite"),
    "an integer beyond floats": (LINE[:-1] + b',"base_score":' + b"9" * 400 + b"}", "finite"),
    "5000 digits": (LINE[:-1] + b',"base_score":' + b"9" * 5000 + b"}", "thousands of digits"),
    "nested": (LINE[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "twice the same key": (LINE[:-1] + b',"prompt":"another"}', "appears twice"),
    "not UTF-8": (LINE[:40] + b"\xff" + LINE[41:], "not UTF-8"),
    "a surrogate in UTF-8": (LINE[:40] + b"\xed\xa0\x80" + LINE[43:], "not UTF-8"),
    "a hole": (LINE[:40] + b"\0" * 30 + LINE[70:], "NUL bytes"),
    "a hole in front": (b"\0" * 64 + LINE, "NUL bytes"),
    "two records on one line": (LINE + LINE, "Extra data"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16-le"), "NUL bytes"),
    "half a character, escaped": (LINE.replace(b"gently", b"\\ud83d"), "a lone surrogate"),
    "too long": (b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than 16 MiB"),
}


@pytest.mark.fault("C2")
@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_reported_and_the_rest_is_assessed(tmp_path: Path, validated, damage: bytes, reason: str):
    path = tmp_path / "pairs.jsonl"
    rows = [dumps(row(i)).encode() for i in range(5)]
    path.write_bytes(b"\n".join([*rows[:3], damage, *rows[3:], b""]))
    result, lines = validated(path)
    assert [line.line for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [bad.line for bad in result.bad_lines] == [3] and reason in result.bad_lines[0].reason
    assert isinstance(lines[3], BadLine) and all(isinstance(line, PairVerdict) for line in lines[:3] + lines[4:])
    assert result.report["pairs"] == 5 and result.report["figures"]["training_pairs"] == 5
    assert not result.report["gate"]["open"] and result.report["gate"]["failed"] == ["bad_lines"]
    assert result.error is not None and int(result.error.exit_code) == 9


def test_a_torn_last_line_is_reported_and_a_complete_one_without_newline_is_a_pair(good: Path, validated):
    complete = good.read_bytes()
    good.write_bytes(complete.rstrip(b"\n"))
    assert validated(good)[0].open
    good.write_bytes(complete[:-3])
    result, _ = validated(good)
    assert [bad.line for bad in result.bad_lines] == [5] and "incomplete" in result.bad_lines[0].reason
    assert [line for line, _ in read_pairs(good, last_line_may_lack_newline=False)] == [0, 1, 2, 3, 4]


@pytest.mark.fault("C3")
def test_bom_crlf_empty_lines_and_line_separators_inside_texts_are_not_damage(tmp_path: Path, validated):
    rows = [row(i, revised_response=f"Glue\u2028thing {i}\x85 gently.") for i in range(4)]
    lines = [json.dumps(each, ensure_ascii=False) for each in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([lines[0], "", "   ", *lines[1:], ""]).encode())
    result, verdicts = validated(path)
    assert result.open and [verdict.line for verdict in verdicts] == [0, 3, 4, 5]


@pytest.mark.fault("C1")
def test_records_cut_anywhere_read_back_as_the_complete_ones(tmp_path: Path):
    random = Random(4)
    path = tmp_path / "x.jsonl"
    for _ in range(60):
        records = [_any_record(random) for _ in range(random.randrange(1, 5))]
        data = "".join(dumps(record) + "\n" for record in records).encode()
        for cut in {0, len(data), *(random.randrange(len(data)) for _ in range(12))}:
            path.write_bytes(data[:cut])
            assert [record for _, record in read_jsonl(path)] == records[: data[:cut].count(b"\n")]


def _any_record(random: Random) -> dict[str, Any]:
    characters = 'aé\u2028\x85\0\n\r\t"\\{}[],:😀\ud800\ufeff\x7f'

    def text() -> str:
        return "".join(random.choice(characters) for _ in range(random.randrange(8)))

    def anything(depth: int) -> Any:
        plain: list[Callable[[], Any]] = [
            text, lambda: None, lambda: True, lambda: random.randrange(-(10**20), 10**20), random.random, lambda: -1e300,
        ]  # fmt: skip
        if depth < 3:
            plain += [
                lambda: [anything(depth + 1) for _ in range(random.randrange(3))],
                lambda: {text(): anything(depth + 1) for _ in range(random.randrange(3))},
            ]
        return random.choice(plain)()

    return {text(): anything(0) for _ in range(random.randrange(4))}


@pytest.mark.fault("C2")
def test_a_file_with_overwritten_bytes_is_assessed_to_its_end(tmp_path: Path, validated):
    random = Random(5)
    clean = "".join(dumps(row(i, base_score=0.5, messages=[message("user", "é")])) + "\n" for i in range(4)).encode()
    path = tmp_path / "pairs.jsonl"
    for _ in range(100):
        data = bytearray(clean)
        for _ in range(random.randrange(1, 6)):
            data[random.randrange(len(data))] = random.choice(b'\0\n\r"\\{}[],:\xff\xed 0aeN')
        path.write_bytes(data)
        result, lines = validated(path)
        nonblank = [number for number, line in enumerate(bytes(data).split(b"\n")) if line.strip()]
        assert [line.line for line in lines] == nonblank
        assert result.report["pairs"] + result.report["figures"]["bad_lines"] == len(nonblank)


# -- files, pipes and empty sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "a folder", "empty", "blank", "an empty archive"])
def test_a_source_without_rows_is_an_error_with_exit_code_2(tmp_path: Path, what: str, capsys):
    path = tmp_path / "pairs.jsonl"
    contents = {"empty": b"", "blank": b"\n \r\n\n", "an empty archive": gzip.compress(b"")}
    if what in contents:
        path.write_bytes(contents[what])
    elif what == "a folder":
        path.mkdir()
    assert main(["validate", str(path), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("failed: ") and str(path) in printed.err


def test_the_error_for_a_run_folder_names_its_pairs_file(tmp_path: Path, validated):
    (tmp_path / "pairs").mkdir()
    write_rows(tmp_path / "pairs" / "pairs.jsonl", [row(1)])
    with pytest.raises(ConfigError) as caught:
        validated(tmp_path)
    assert "pairs/pairs.jsonl" in caught.value.what_to_do


def test_a_compressed_file_is_read_whatever_its_name_and_a_truncated_one_is_damaged(good: Path, validated):
    plain = validated(good)[1]
    packed = gzip.compress(good.read_bytes())
    good.write_bytes(packed)
    assert validated(good)[1] == plain
    good.write_bytes(packed[:-20])
    result, lines = validated(good)
    assert "compressed data" in result.bad_lines[0].reason and not result.open
    assert lines[: len(lines) - 1] == plain[: len(lines) - 1]


def test_a_dash_is_standard_input(good: Path, validated, monkeypatch: pytest.MonkeyPatch):
    plain = validated(good)[1]
    for data in (good.read_bytes(), gzip.compress(good.read_bytes())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        assert validated(Path("-"))[1] == plain


@pytest.mark.fault("B11")
def test_memory_does_not_grow_with_the_texts(tmp_path: Path, config):
    path = tmp_path / "pairs.jsonl"

    def peak(pairs: int) -> int:
        long = (" ".join(map(str, range(i, i + 10_000))) for i in range(pairs))
        write_rows(path, (row(i, revised_response=text) for i, text in enumerate(long)))
        tracemalloc.start()
        try:
            validate(path, config())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # imports and compiles what the first use needs
    assert peak(30) < 1.3 * peak(5)


# -- sidecar files -----------------------------------------------------------------------------------------------------


def test_decisions_beside_the_file_count_and_are_reported(good: Path, validated, capsys):
    edits = good.with_name("edits.jsonl")
    for pair_id, action in (("id1", "reject"), ("id2", "flip"), ("elsewhere", "reject")):
        write_edit(edits, pair_id, action)
    result, lines = validated(good)
    assert lines[1].reasons == ("rejected",) and not lines[1].usable
    people = result.report["people"]
    assert (people["decided"], people["rejected"], people["flipped"], people["not_here"]) == (2, 1, 1, 1)
    main(["validate", str(good)])
    printed = capsys.readouterr().out
    assert "decisions about 2 pairs" in printed and "about 1 pair not in this file" in printed


def test_a_damaged_decision_shuts_the_gate_and_the_error_names_its_line(good: Path, validated):
    edits = good.with_name("edits.jsonl")
    write_edit(edits, "id1", "reject")
    with edits.open("a") as file:
        file.write('{"id": "id2", "action": "rejcet"}\n')
    result, _ = validated(good, accept_quality="never mind")
    assert result.report["gate"]["failed"] == ["bad_edits"]
    assert result.error is not None and "Line 2 of" in result.error.what and "edits.jsonl" in result.error.what


def test_the_last_judges_scores_count_where_its_texts_are_unchanged(good: Path, validated):
    from engine.pairs.judges.scores import comparison_of, key_of

    pairs = [each for _, each in read_pairs(good) if isinstance(each, Pair)]
    pairs[2] = replace(pairs[2], revised_response="Screw thing 2 to the wall.")
    rows = [
        {
            "id": each.id,
            "judge": who,
            "texts": key_of(comparison_of(each))[1],
            "base_score": first,
            "revised_score": 0.5,
        }
        for who, first in (("old", 0.9), ("new", 0.1))
        for each in pairs
    ]
    write_rows(good.with_name("scores.jsonl"), rows)
    write_edit(good.with_name("edits.jsonl"), "id1", "edit", "Tape thing 1 to the wall.")
    write_edit(good.with_name("edits.jsonl"), "id2", "edit", "Screw thing 2 to the wall.")
    report = validated(good)[0].report
    assert (report["scored_by"], report["scored"], report["figures"]["improved_share"]) == ("new", 5, 1.0)


# -- the exported training set -----------------------------------------------------------------------------------------


def test_the_export_is_the_edited_training_set_and_loads_in_plain_datasets(tmp_path: Path, good: Path, validated):
    from datasets import load_dataset

    write_edit(good.with_name("edits.jsonl"), "id0", "reject")
    write_edit(good.with_name("edits.jsonl"), "id1", "flip")
    with good.open("a") as file:
        file.write(dumps(row(7, revised_response=META)) + "\n")
    out = tmp_path / "train.jsonl"
    result, _ = validated(good, export=out)
    assert result.report["export"] == {"path": str(out), "pairs": 5, "written": True}
    loaded = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded.column_names) == ["chosen", "prompt", "rejected"] and len(loaded) == 5
    assert loaded[0]["chosen"] == [message("assistant", row(1)["base_response"])]
    assert loaded[1]["prompt"] == [message("user", row(2)["prompt"])]
    assert all(isinstance(each, Pair) for _, each in read_pairs(out))


def test_nothing_is_exported_while_the_gate_is_shut_unless_a_person_opens_it(tmp_path: Path, good: Path, capsys):
    out = tmp_path / "train.jsonl"
    command = ["validate", str(good), "--export", str(out)]
    before = set(tmp_path.iterdir())
    assert main(command) == 9
    assert "Did not write" in capsys.readouterr().out and set(tmp_path.iterdir()) == before
    assert main([*command, "--accept-quality", "to try it out"]) == 0
    printed = capsys.readouterr()
    assert "opened the gate (to try it out)" in printed.out and printed.err == ""
    assert len(out.read_text().splitlines()) == 6


def test_an_export_replaces_no_file_without_force_and_never_an_input_file(tmp_path: Path, good: Path, validated):
    out = tmp_path / "train.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        validated(good, export=out)
    assert out.read_text() == "mine"
    validated(good, export=out, force=True)
    assert len(out.read_text().splitlines()) == 6
    write_edit(good.with_name("edits.jsonl"), "id0", "note", "keep")
    (tmp_path / "link.jsonl").symlink_to(good)
    (tmp_path / "hard.jsonl").hardlink_to(good)
    before = good.read_bytes()
    for name in ("pairs.jsonl", "link.jsonl", "hard.jsonl", "edits.jsonl"):
        with pytest.raises(ConfigError, match="one of the input files"):
            validated(good, export=tmp_path / name, force=True)
    assert good.read_bytes() == before


def test_an_export_needs_a_regular_file_in_an_existing_folder(tmp_path: Path, good: Path, validated):
    for place, reason in (
        (tmp_path, "a folder"),
        (tmp_path / "no" / "x", "does not exist"),
        (Path("/dev/null"), "regular"),
    ):
        with pytest.raises(ConfigError, match=reason):
            validated(good, export=place, force=True)


def test_a_file_that_is_damaged_in_the_middle_leaves_no_partial_export(tmp_path: Path, good: Path, validated):
    with good.open("a") as file:
        file.write("{oops\n")
    result, _ = validated(good, export=tmp_path / "train.jsonl", accept_quality="a dry run")
    assert not result.open and result.report["export"]["written"] is False
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl"}


# -- output ------------------------------------------------------------------------------------------------------------


def test_the_json_report_has_a_verdict_for_every_line_of_a_large_file(tmp_path: Path, capsys):
    many = 30_000
    short = [{"prompt": f"p{i}", "base_response": "a", "revised_response": ""} for i in range(many)]
    path = write_rows(tmp_path / "pairs.jsonl", short)
    with path.open("a") as file:
        file.write("{oops\n")
    assert main(["validate", str(path), "--json"]) == 9
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert list(data)[:4] == ["pairs", "methods", "figures", "gate"] and data["pairs"] == many
    assert {"open", "failed"} <= set(data["gate"]) and data["gate"]["open"] is False
    assert [verdict["line"] for verdict in data["verdicts"]] == list(range(many + 1))
    assert all(set(verdict) == {"line", "usable", "reasons"} for verdict in data["verdicts"])
    assert data["verdicts"][0] == {"line": 0, "usable": False, "reasons": data["verdicts"][0]["reasons"]}
    assert data["verdicts"][-1]["usable"] is False and "not JSON" in data["verdicts"][-1]["reasons"][0]
    assert printed.err.startswith("failed: The gate is shut") and f"One line of {path} is not a pair" in printed.err


def test_the_printed_report_counts_lines_from_1_and_shows_figures_and_an_example_of_each_reason(
    tmp_path: Path, good: Path, capsys
):
    hostile = row(7, prompt="[red]\x1b[31mask", revised_response=META)
    with good.open("a") as file:
        file.write(dumps(hostile) + "\n{oops\n")
    assert main(["validate", str(good)]) == 9
    printed = capsys.readouterr().out
    assert "line 8: not JSON" in printed
    assert "training pairs" in printed and "(at least 100)" in printed
    assert "left out: 1 meta" in printed and "for example line 7" in printed
    assert "[red]␛[31mask" in printed and "\x1b" not in printed
    for word in ("prompt", "draft", "revision"):
        assert f"    {word}" in printed


def test_validate_rejects_options_that_it_does_not_use(good: Path, capsys):
    assert main(["validate", str(good), "--judge", "self"]) == 2
    assert main(["validate", str(good), "--min-eval-pairs", "3"]) == 2
    capsys.readouterr()


def test_the_notebooks_published_pairs_are_refused(config):
    lines: Lines = []
    result = validate(needs_shared_data("gemma-2b-it-pairs.jsonl"), config(), lines.append)
    assert result.report["pairs"] == 1291
    assert result.report["figures"]["byte_identical"] == 488
    assert not result.open and "usable_share" in result.report["gate"]["failed"]
    assert [verdict.line for verdict in lines] == list(range(1291))
    assert result.report["figures"]["shared_prompt_share"] < 0.05
