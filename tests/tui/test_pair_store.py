"""The pairs behind the browser: read as they arrive, assessed in chunks, decided about; with the stage's own gate."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.core import layout
from engine.pairs.assessment.gate import Tally, figures
from engine.pairs.assessment.validation import validate
from engine.pairs.data.edits import read_edits, write_edit
from engine.pairs.judges.scores import comparison_of, key_of
from engine.run.folder import Run
from tests.conftest import needs_shared_data
from tests.support.good_pairs import META, pair, row, write_rows
from tui.pair_browser.gate_strip import SHORT
from tui.pair_browser.store import PairStore


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run" / "pairs").mkdir(parents=True)
    return Run(tmp_path / "run")


def pairs_of(run: Run, *rows: dict) -> Path:
    return write_rows(run / layout.PAIRS_JSONL, rows)


def catch_up(store: PairStore) -> PairStore:
    """Read and assess everything, as the browser does."""
    while news := store.read():
        store.apply(news)
    while batch := store.next_to_check():
        store.apply_assessments(store.check(batch))
    return store


def the_stage_finds(run: Run, config) -> tuple[list, dict[int, bool]]:
    """The figures of `validate`, and so of the stage, for the same files."""
    usable: dict[int, bool] = {}
    validation = validate(
        run / layout.PAIRS_JSONL, config, lambda one: usable.__setitem__(one.line, getattr(one, "usable", False))
    )
    return validation.report["gate"]["figures"], usable


def assert_the_gate_is_the_stages(store: PairStore, run: Run, config) -> None:
    wanted, usable = the_stage_finds(run, config)
    assert [(one.name, one.value) for one in figures(store.review.counts, config)] == [
        (one["name"], one["value"]) for one in wanted
    ]
    assert {one.line.number: one.usable for one in store.rows} == usable


def score(run: Run, judge: str, *pairs_and_scores) -> None:
    """Append a judge's scores of pairs, as the stage does."""
    with (run / layout.SCORES_JSONL).open("a") as file:
        for one, (first, second) in pairs_and_scores:
            pair_id, texts = key_of(comparison_of(one))
            line = {"id": pair_id, "judge": judge, "texts": texts, "base_score": first, "revised_score": second}
            file.write(json.dumps(line) + "\n")


def test_pairs_are_read_as_they_are_written_and_a_torn_line_waits(run: Run):
    store = catch_up(PairStore(run))
    assert store.rows == []
    path = pairs_of(run, row(1), row(2))
    with path.open("a") as file:
        file.write(json.dumps(row(3))[:20])
    catch_up(store)
    assert [one.id for one in store.rows] == ["id1", "id2"] and all(one.checked for one in store.rows)
    with path.open("a") as file:
        file.write(json.dumps(row(3))[20:] + "\nno json\n")
    catch_up(store)
    assert [one.id for one in store.rows] == ["id1", "id2", "id3", ""]
    assert store.review.counts.bad_lines == 1 and not store.rows[3].usable


def test_until_it_is_checked_a_row_has_its_records_reason(run: Run):
    pairs_of(run, row(1, status="loop"), row(2))
    store = PairStore(run)
    store.apply(store.read())
    assert [(one.reasons, one.checked) for one in store.rows] == [(("loop",), False), ((), False)]
    catch_up(store)
    assert [(one.reasons, one.checked) for one in store.rows] == [((), True), ((), True)], "the text is not a loop"


@pytest.mark.parametrize("seed", range(4))
def test_after_any_decisions_the_gate_is_the_stages(run: Run, config, seed: int):
    chance = random.Random(seed)
    made = [
        row(
            chance.randrange(12),
            id=f"id{number}",
            **chance.choice(
                [{}, {}, {"revised_response": META}, {"status": "prompt too long", "revised_response": ""}]
            ),
        )
        for number in range(24)
    ]
    pairs_of(run, *made)
    store, options = catch_up(PairStore(run)), config(min_pairs=4)
    for _ in range(25):
        index = chance.randrange(24)
        match chance.randrange(5):
            case 0:
                store.undo(index)
            case 1:
                store.decide(index, "edit", f"Look at thing {chance.randrange(3)} closely.", "revised_response")
            case 2:
                store.decide(index, "note", "hm")
            case _:
                store.decide(index, chance.choice(["accept", "reject", "flip"]))
        assert_the_gate_is_the_stages(store, run, options)
    assert_the_gate_is_the_stages(catch_up(PairStore(run)), run, options)


def test_new_scores_change_the_gate_and_only_the_newest_judges_count(run: Run, config):
    made = [pair(number, base_score=None, revised_score=None) for number in range(6)]
    pairs_of(run, *(row(number) for number in range(6)))
    store = catch_up(PairStore(run))
    assert {one.gain for one in store.rows} == {None}
    score(run, "first", *((one, (0.5, 0.25)) for one in made))
    catch_up(store)
    assert {one.gain for one in store.rows} == {-0.25}
    assert_the_gate_is_the_stages(store, run, config())
    score(run, "second", *((one, (0.5, 0.75)) for one in made[:4]))
    catch_up(store)
    assert [one.gain for one in store.rows] == [0.25] * 4 + [None] * 2
    assert_the_gate_is_the_stages(store, run, config())
    store.decide(0, "flip")
    assert_the_gate_is_the_stages(store, run, config())
    store.decide(1, "edit", "Read the manual of thing 1 first.", "revised_response")
    assert store.rows[1].gain is None, "another text was never scored"
    assert_the_gate_is_the_stages(store, run, config())


def test_scores_that_are_read_before_the_check_count(run: Run, config):
    pairs_of(run, row(1))
    score(run, "j", (pair(1), (0.25, 0.75)))
    store = catch_up(PairStore(run))
    assert store.rows[0].gain == 0.5
    assert_the_gate_is_the_stages(store, run, config())


def test_undo_reverts_the_last_decision_wherever_the_cursor_is(run: Run):
    pairs_of(run, row(1), row(2), row(3))
    store = catch_up(PairStore(run))
    store.decide(0, "reject")
    store.decide(2, "reject")
    assert store.undo(1) == 2 and store.rows[2].decision is None
    assert store.undo(1) == 0
    assert store.undo(1) is None


def test_undo_reverts_an_earlier_sessions_decision_under_the_cursor(run: Run):
    pairs_of(run, row(1), row(2))
    write_edit(run / layout.EDITS_JSONL, "id2", "reject")
    store = catch_up(PairStore(run))
    assert store.rows[1].state == "rejected"
    assert store.undo(0) is None
    assert store.undo(1) == 1 and store.rows[1].state == "usable"


def test_a_decision_during_a_check_is_not_overwritten(run: Run):
    pairs_of(run, row(1), row(2))
    store = PairStore(run)
    store.apply(store.read())
    batch = store.next_to_check()
    found = store.check(batch)  # in its thread, from the state before the decision
    store.decide(0, "reject")
    store.apply_assessments(found)
    assert not store.rows[0].usable and store.rows[0].state == "rejected"
    assert not catch_up(store).rows[0].usable


def test_decisions_made_elsewhere_are_read(run: Run):
    """`attach` reads the decisions of the wizard that owns the run."""
    pairs_of(run, row(1))
    watching = catch_up(PairStore(run))
    catch_up(PairStore(run)).decide(0, "reject")
    assert catch_up(watching).rows[0].state == "rejected"


def test_a_pair_without_an_id_cannot_be_decided_about(run: Run):
    bare = row(1)
    del bare["id"]
    pairs_of(run, bare)
    with pytest.raises(ValueError, match="no id"):
        catch_up(PairStore(run)).decide(0, "reject")
    assert not read_edits(run / layout.EDITS_JSONL)


def test_a_replaced_file_is_read_from_the_start(run: Run):
    path = pairs_of(run, row(1), row(2))
    store = catch_up(PairStore(run))
    path.unlink()
    pairs_of(run, row(7))
    catch_up(store)
    assert [one.id for one in store.rows] == ["id7"] and store.review.counts.made == 1


def test_real_pairs_give_the_gate_that_validate_gives(run: Run, config):
    real = needs_shared_data("gemma-2b-it-pairs.jsonl")
    (run / layout.PAIRS_JSONL).write_bytes(real.read_bytes())
    store = catch_up(PairStore(run))
    assert store.review.counts.made == 1291 and store.review.counts.byte_identical == 488
    assert_the_gate_is_the_stages(store, run, config())


def test_every_figure_of_the_gate_has_a_short_name(config):
    assert {one.name for judged in (True, False) for one in figures(Tally(), config(), judged=judged)} == set(SHORT)


def test_a_decision_during_a_read_is_not_reverted_by_it(run: Run):
    pairs_of(run, row(0), row(1))
    store = catch_up(PairStore(run))
    write_edit(run / layout.EDITS_JSONL, "id1", "reject")
    news = store.read()
    store.decide(0, "accept")
    store.apply(news)
    assert store.rows[0].decision.accepted is True
    catch_up(store)
    assert (store.rows[0].decision.accepted, store.rows[1].decision.accepted) == (True, False)


def test_two_stores_read_each_others_decisions(run: Run):
    pairs_of(run, row(0), row(1))
    one, other = catch_up(PairStore(run)), catch_up(PairStore(run))
    one.decide(0, "reject")
    other.decide(1, "reject")
    for store in (one, other):
        catch_up(store)
        assert [each.decision.accepted for each in store.rows] == [False, False]
