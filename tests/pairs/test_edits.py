"""People's decisions: stored as they are made, undone one by one, never lost silently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pytest

from engine.core.errors import DiskError
from engine.pairs.data import edits_lock
from engine.pairs.data.edits import (
    ACTIONS,
    Decision,
    Edits,
    History,
    apply_decision,
    count_edits_after,
    read_edits,
    read_settled_edits,
    write_edit,
)
from engine.pairs.data.edits_lock import sole_writer
from engine.pairs.generation.superseded import _prepend
from engine.storage.jsonl import read_jsonl
from tests.support.good_pairs import pair

ROOT = Path(__file__).parents[2]


def edit(pair_id: str, action: str, **more: str) -> dict[str, str]:
    return {"id": pair_id, "action": action, **more}


def decisions_of(edits: Iterable[dict[str, Any]]) -> dict[str, Decision]:
    """What follows from edits in the order they were made."""
    history = History()
    for each in edits:
        history.add(each)
    return history.decisions()


# -- writing ----------------------------------------------------------------------------------------------------------


def test_an_edit_is_appended_with_its_time_and_read_back(tmp_path: Path):
    path = tmp_path / "pairs" / "edits.jsonl"
    write_edit(path, "a", "reject")
    write_edit(path, "b", "edit", "Say it so.")
    write_edit(path, "b", "note", "ünï\u2028code")
    rows = [row for _, row in read_jsonl(path)]
    assert [(row["id"], row["action"]) for row in rows] == [("a", "reject"), ("b", "edit"), ("b", "note")]
    assert all(row["time"] > 1.7e9 for row in rows)
    assert dict(read_edits(path)) == {
        "a": Decision(accepted=False),
        "b": Decision(revised_response="Say it so.", note="ünï\u2028code"),
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a", "delete"), "not an action"),
        (("", "accept"), "no pair id"),
        (("  ", "accept"), "no pair id"),
        ((None, "accept"), "no pair id"),
        (("a", "edit"), "needs a text"),
        (("a", "note"), "needs a text"),
        (("a", "edit", " \n"), "empty"),
        (("a", "accept", "why"), "takes no text"),
        (("a", "edit", "NUL \0"), "NUL"),
        (("a", "note", "half \ud83d"), "surrogate"),
        (("\ud83d", "accept"), "surrogate"),
        (("a", "note", "x" * (1 << 21)), "longer"),
    ],
)
def test_what_is_not_an_edit_is_refused_before_it_is_written(tmp_path: Path, arguments: tuple, reason: str):
    path = tmp_path / "edits.jsonl"
    with pytest.raises(ValueError, match=reason):
        write_edit(path, *arguments)
    assert not path.exists()


def test_only_edit_takes_a_field_and_only_a_known_one(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    write_edit(path, "a", "edit", "Another draft.", field="base_response")
    assert read_edits(path)["a"] == Decision(base_response="Another draft.")
    for action, text, field in (("edit", "new", "prompt"), ("note", "new", "base_response"), ("accept", None, "x")):
        with pytest.raises(ValueError, match="only edit takes a field"):
            write_edit(path, "a", action, text, field=field)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_without_a_file_there_are_no_decisions(tmp_path: Path):
    assert not read_edits(tmp_path / "edits.jsonl")


def test_damaged_lines_are_reported_and_the_others_count(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    lines = [
        json.dumps(edit("a", "reject")),
        "{oops",
        json.dumps(edit("a", "explode")),
        json.dumps({"id": 7, "action": "accept"}),
        json.dumps({"id": "b", "action": "accept", "time": "noon"}),
        "[]",
        json.dumps(edit("b", "accept")),
    ]
    path.write_text("".join(line + "\n" for line in lines))
    edits = read_edits(path)
    assert dict(edits) == {"a": Decision(accepted=False), "b": Decision(accepted=True)}
    assert [bad.line for bad in edits.damaged] == [1, 2, 3, 4, 5]
    assert not edits.torn


def test_an_unfinished_last_line_is_not_damage_and_a_complete_one_without_newline_counts(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    whole = json.dumps(edit("a", "reject")) + "\n" + json.dumps(edit("b", "reject"))
    path.write_text(whole)
    assert set(read_edits(path)) == {"a", "b"} and not read_edits(path).torn
    path.write_text(whole[:-1])
    edits = read_edits(path)
    assert (set(edits), edits.damaged, edits.torn) == ({"a"}, (), True)
    write_edit(path, "c", "accept")
    edits = read_edits(path)
    assert (set(edits), edits.torn) == ({"a", "c"}, False)


# -- what stands ------------------------------------------------------------------------------------------------------


def test_each_undo_takes_back_one_edit_of_its_pair_and_none_left_is_no_error():
    made = [edit("a", "reject"), edit("a", "flip"), edit("b", "accept")]
    assert decisions_of([*made, edit("a", "undo")])["a"] == Decision(accepted=False)
    assert "a" not in decisions_of([*made, edit("a", "undo"), edit("a", "undo")])
    assert "a" not in decisions_of([*made, *[edit("a", "undo")] * 5])
    assert decisions_of([edit("a", "undo"), edit("a", "reject")])["a"] == Decision(accepted=False)


def test_reject_then_accept_accepts_and_undo_of_the_accept_rejects_again():
    made = [edit("a", "reject"), edit("a", "accept")]
    assert decisions_of(made)["a"].accepted is True
    assert decisions_of([*made, edit("a", "undo")])["a"].accepted is False


def test_flipping_twice_is_not_flipping():
    assert decisions_of([edit("a", "flip"), edit("a", "flip")])["a"].flipped is False


def test_edits_of_different_pairs_do_not_touch_each_other():
    random = Random(1)
    for _ in range(200):
        edits = [_random_edit(random, "ab") for _ in range(12)]
        apart = [each for name in "ab" for each in edits if each["id"] == name]
        assert decisions_of(edits) == decisions_of(apart)


def test_any_sequence_of_edits_gives_what_its_effective_edits_give():
    random = Random(2)
    for _ in range(500):
        edits = [_random_edit(random, "abc") for _ in range(random.randrange(20))]
        assert decisions_of(edits) == {name: told for name in "abc" if (told := _model(edits, name)) is not None}


def _random_edit(random: Random, names: str) -> dict[str, str]:
    action = random.choice([*ACTIONS, "undo"])
    more = {"text": f"text {random.random()}"} if action in ("edit", "note") else {}
    if action == "edit" and random.random() < 0.3:
        more["field"] = "base_response"
    return edit(random.choice(names), action, **more)


def _model(edits: list[dict[str, str]], name: str) -> Decision | None:
    """Cancel each undo with the last edit before it that is not cancelled; then the last edit of each kind counts."""
    standing: list[dict[str, str]] = []
    for each in (each for each in edits if each["id"] == name):
        standing = standing[:-1] if each["action"] == "undo" else [*standing, each]
    if not standing:
        return None

    def last(*actions: str, field: str | None = None) -> dict[str, str] | None:
        found = [
            e for e in standing if e["action"] in actions and (field is None or field == e.get("field", "revised"))
        ]
        return found[-1] if found else None

    verdict, note = last("accept", "reject"), last("note")
    revision, draft = last("edit", field="revised"), last("edit", field="base_response")
    return Decision(
        accepted=None if verdict is None else verdict["action"] == "accept",
        flipped=sum(e["action"] == "flip" for e in standing) % 2 == 1,
        revised_response=None if revision is None else revision["text"],
        base_response=None if draft is None else draft["text"],
        note="" if note is None else note["text"],
    )


def test_a_new_text_has_no_score_and_is_not_cut_off():
    made = pair(1, finish={"draft": "stopped", "revision": "cut off"}, status="cut off")
    edited = apply_decision(made, Decision(revised_response="Glue it."))
    assert (edited.revised_response, edited.revised_score, edited.base_score) == ("Glue it.", None, made.base_score)
    assert (edited.status, edited.finish["revision"]) == ("ok", "stopped")
    redrafted = apply_decision(made, Decision(base_response="Kick it."))
    assert (redrafted.base_response, redrafted.base_score, redrafted.revised_score) == ("Kick it.", None, 0.75)
    assert redrafted.finish["revision"] == "cut off"


def test_edit_then_flip_prefers_the_draft_to_the_new_text():
    decision = decisions_of([edit("id1", "edit", text="Wait."), edit("id1", "flip")])["id1"]
    edited = apply_decision(pair(1), decision)
    assert (edited.preferred, edited.dispreferred) == (pair(1).base_response, "Wait.")


# -- several writers ---------------------------------------------------------------------------------------------------


def test_several_processes_write_at_once_and_every_edit_is_complete(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    script = "import sys; from pathlib import Path; from engine.pairs.data.edits import write_edit\n"
    script += "for n in range(60): write_edit(Path(sys.argv[1]), f'{sys.argv[2]}-{n}', 'note', 'x' * 3000)"
    command = [sys.executable, "-c", script, str(path)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = read_edits(path)
    assert set(found) == {f"{name}-{n}" for name in "ab" for n in range(60)} and not found.damaged
    assert [other.name for other in tmp_path.iterdir()] == ["edits.jsonl"], "nothing was put aside as torn"


def test_replacing_the_file_loses_no_decision_made_meanwhile(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    decided = [f"new-{n}" for n in range(50)]
    writer = Thread(target=lambda: [write_edit(path, name, "accept") for name in decided])
    writer.start()
    rounds = 0
    while writer.is_alive() or not rounds:
        _prepend(path, [{"id": f"old-{rounds}", "action": "reject", "time": 1.0}])
        rounds += 1
    writer.join()
    assert set(read_edits(path)) == {*decided, *(f"old-{n}" for n in range(rounds))}


def test_a_writer_that_hangs_is_reported_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edits_lock, "MAX_SECONDS", 0.05)
    path = tmp_path / "edits.jsonl"
    with sole_writer(path), pytest.raises(DiskError, match="another process"):
        write_edit(path, "a", "accept")
    write_edit(path, "a", "accept")
    assert set(read_edits(path)) == {"a"}


def test_later_decisions_are_counted_without_being_read(tmp_path: Path):
    path = tmp_path / "edits.jsonl"
    assert read_settled_edits(path) == (Edits({}), 0) and count_edits_after(path, 0) == 0 and not path.exists()
    write_edit(path, "a", "accept")
    decisions, size = read_settled_edits(path)
    write_edit(path, "b", "accept")
    write_edit(path, "b", "note", "later")
    assert set(decisions) == {"a"} and count_edits_after(path, size) == 2 and count_edits_after(path, 0) == 3
