"""Stage pairs with `--pairs`: pairs in any form are imported; nothing is generated."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import ConfigError, DataError
from engine.core.events import Check, Message
from engine.hub.run_requirements import hub_requirements
from engine.pairs.data.edits import read_edits, write_edit
from engine.pairs.generation.prompts import load_prompts, pairs_wanted
from engine.pipeline.plan import planned_stages
from engine.run.context import Context
from engine.run.results import PairsResult, read_result
from engine.stages import credentials, quality
from engine.stages import pairs as stage
from engine.storage.files import sha256_of_file
from engine.storage.jsonl import read_jsonl
from tests.conftest import run_stage


def orca(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "system": "Be brief.",
        "question": f"How do I mend thing number {number}?",
        "chosen": f"Glue thing {number} gently.",
        "rejected": f"Kick thing {number} as hard as you possibly can, twice.",
    }
    return {**row, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return write(tmp_path / "orca.jsonl", [orca(number) for number in range(30)])


def imported(at_work: Context) -> tuple[list[Any], PairsResult]:
    """Run the stage, and keep its result as the pipeline does."""
    events, end = run_stage(stage.run(at_work))
    at_work.run.record_stage("pairs", status="done", result=end.facts)
    return events, end.result


def records(at_work: Context) -> list[dict[str, Any]]:
    return [dict(record) for _, record in read_jsonl(at_work.run / layout.PAIRS_JSONL)]  # type: ignore[call-overload]


def test_pairs_from_another_tool_become_the_runs_records(context: Callable[..., Context], theirs: Path):
    at_work = context(pairs=theirs)
    _, result = imported(at_work)
    assert (result.records, result.ok, result.generated_tokens) == (30, 30, 0)
    assert result.imported == {"name": "orca.jsonl", "sha256": sha256_of_file(theirs), "rows": 30, "bad_rows": 0}
    first = records(at_work)[0]
    assert first["messages"] == [{"role": "user", "content": "Be brief.\n\nHow do I mend thing number 0?"}]
    assert (first["revised_response"], first["attempts"], first["status"]) == ("Glue thing 0 gently.", 0, "ok")
    assert len({record["made_with"] for record in records(at_work)}) == 30
    assert read_result(PairsResult, json.loads(json.dumps(result.as_dict()))) == result


def test_the_gate_and_later_stages_treat_imported_pairs_like_others(context: Callable[..., Context], theirs: Path):
    at_work = context(
        pairs=theirs, min_pairs=5, min_eval_pairs=3, judge="none", relevance=False, accept_quality="a test"
    )
    imported(at_work)
    _, end = run_stage(quality.run(at_work))
    assert end.result.train + end.result.held_out == 30


def test_the_same_file_gives_the_same_bytes_and_another_sets_them_aside(
    context: Callable[..., Context], theirs: Path, tmp_path: Path
):
    at_work = context(pairs=theirs)
    before = imported(at_work)[1].pairs_sha256
    with theirs.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(orca(0)))
        writer.writeheader()
        writer.writerows(orca(number) for number in range(30))
    same = context(pairs=theirs.with_suffix(".csv"))
    assert imported(same)[1].pairs_sha256 == before
    assert not (at_work.run / layout.SUPERSEDED_DIR).exists()
    write_edit(at_work.run / layout.EDITS_JSONL, records(at_work)[2]["id"], "reject")
    write_edit(at_work.run / layout.EDITS_JSONL, records(at_work)[9]["id"], "reject")
    kept, gone = records(at_work)[2]["id"], records(at_work)[9]["id"]
    other = context(pairs=write(tmp_path / "other.jsonl", [orca(number) for number in range(5)]))
    assert imported(other)[1].pairs_sha256 != before
    assert (at_work.run / layout.SUPERSEDED_DIR / "1" / layout.PAIRS_JSONL).is_file()
    decided = read_edits(at_work.run / layout.EDITS_JSONL)
    assert kept in decided and gone not in decided


def test_decisions_beside_the_file_are_imported_once(context: Callable[..., Context], theirs: Path):
    at_work = context(pairs=theirs)
    imported(at_work)
    first = records(at_work)[0]["id"]
    write_edit(theirs.with_name("orca.jsonl.edits.jsonl"), first, "reject")
    imported(at_work)
    imported(at_work)
    assert [edit for _, edit in read_jsonl(at_work.run / layout.EDITS_JSONL)] == [
        edit for _, edit in read_jsonl(theirs.with_name("orca.jsonl.edits.jsonl"))
    ]
    assert read_edits(at_work.run / layout.EDITS_JSONL)[first].accepted is False


def test_pairs_that_share_an_id_are_distinguished(context: Callable[..., Context], tmp_path: Path):
    own = {"id": "x", "prompt": "How?", "base_response": "No.", "revised_response": "So."}
    at_work = context(pairs=write(tmp_path / "own.jsonl", [own, {**own, "revised_response": "Thus."}]))
    imported(at_work)
    assert [record["id"] for record in records(at_work)] == ["x", "x-2"]


def test_rows_that_are_not_pairs_are_reported_and_too_many_are_refused(context: Callable[..., Context], tmp_path: Path):
    path = write(tmp_path / "some.jsonl", [orca(1), orca(2, chosen=None), orca(3)])
    events, result = imported(context(pairs=path))
    assert (result.records, (result.imported or {})["bad_rows"]) == (2, 1)
    assert any(isinstance(event, Message) and "row 2: not a pair: chosen is null" in event.text for event in events)
    strict = replace(context(pairs=path, max_bad_rows=0.1))
    with pytest.raises(DataError, match="1 of 3 rows"):
        imported(strict)
    assert len(records(strict)) == 2
    assert not [file for file in (strict.run / "pairs").iterdir() if file.name.endswith(".part")]
    with pytest.raises(ConfigError, match="does not exist"):
        imported(context(pairs=tmp_path / "nowhere.jsonl"))


def test_imported_pairs_are_checked_before_a_model_is_loaded(
    context: Callable[..., Context], theirs: Path, tmp_path: Path
):
    here = {"base_model_id": str(tmp_path), "adapter_path": str(tmp_path)}
    at_work = context(pairs=theirs, dataset="Anthropic/hh-rlhf", judge="none", **here)
    assert hub_requirements(at_work.config, at_work.run) == ()
    events, _ = run_stage(credentials.run(at_work))
    assert [event.detail for event in events if isinstance(event, Check) and event.name == "pairs"] == ["30 of 30 rows"]
    write(theirs, [{"prompt": "How?", "completion": "So.", "label": True}])
    with pytest.raises(DataError, match="KTO"):
        run_stage(credentials.run(at_work))


def test_preflight_uses_imported_prompts_and_the_plan_generates_nothing(context: Callable[..., Context], theirs: Path):
    at_work = context(pairs=theirs, num_examples=7)
    assert len(load_prompts(at_work.config)) == pairs_wanted(at_work.config) == 30
    planned = {one.name: one for one in planned_stages(at_work)}
    assert planned["pairs"].seconds == 0.0 and "imports orca.jsonl; nothing is generated" in planned["pairs"].why
