from __future__ import annotations

import json
from pathlib import Path

from engine.jsonl import BadLine
from engine.pairs.edits import Decision, apply_decision, fold_edits
from engine.pairs.files import pair_of
from engine.pairs.gate import Tally, failed, figures, report
from engine.pairs.record import Pair
from engine.pairs.training_set import hold_out, preference_row
from engine.pairs.validation import validate
from tests.conftest import needs_shared_data


def pair(number: int, **changes: object) -> Pair:
    asked = f"How do I mend thing number {number}?"
    values: dict = {
        "id": f"id{number}",
        "prompt": asked,
        "messages": [{"role": "user", "content": asked}],
        "base_response": f"Kick thing {number} as hard as you possibly can, twice.",
        "revised_response": f"Glue thing {number} gently.",
        "base_score": 0.25,
        "revised_score": 0.75,
    }
    return Pair(**{**values, **changes})


def tally_of(*pairs: Pair) -> Tally:
    tally = Tally()
    for line, one in enumerate(pairs):
        tally.add(line, one)
    return tally


def shut_by(config, *pairs: Pair, **options: object) -> list[str]:
    return [figure.name for figure in failed(figures(tally_of(*pairs), config(min_pairs=4, **options)))]


def test_good_pairs_open_the_gate(config):
    assert shut_by(config, *map(pair, range(5))) == []


def test_identical_pairs_shut_it_because_most_of_what_was_made_cannot_teach(config):
    same = [pair(i, revised_response=pair(i).base_response) for i in range(5, 11)]
    assert shut_by(config, *map(pair, range(5)), *same) == ["usable_share"]


def test_too_few_pairs_shut_it(config):
    assert shut_by(config, *map(pair, range(3))) == ["training_pairs"]


def test_revisions_that_are_only_longer_shut_it(config):
    longer = [
        pair(i, revised_response=f"Glue thing {i} gently, then wait, then look whether it holds, and if not, wait.")
        for i in range(12)
    ]
    assert shut_by(config, *longer) == ["longer_share"]


def test_shared_prompts_shut_it(config):
    twins = [pair(i, messages=[{"role": "user", "content": "the same"}]) for i in range(2)]
    assert shut_by(config, *twins, *map(pair, range(5, 10))) == ["shared_prompt_share"]


def test_a_judge_that_finds_no_improvement_shuts_it_and_no_judge_does_not(config):
    worse = [pair(i, base_score=0.9, revised_score=0.1) for i in range(6)]
    unscored = [pair(i, base_score=None, revised_score=None) for i in range(6)]
    assert shut_by(config, *worse) == ["improved_share"]
    assert shut_by(config, *unscored) == []
    improved = next(f for f in figures(tally_of(*unscored), config()) if f.name == "improved_share")
    assert improved.passes is None and "nothing scored" in improved.sentence


def test_a_prompt_that_never_got_a_revision_counts_as_made_and_not_as_usable(config):
    tally = tally_of(pair(1), pair(2, status="prompt too long", revised_response=""))
    assert (tally.made, tally.usable, dict(tally.reasons)) == (2, 1, {"prompt too long": 1})


def test_the_report_counts_what_was_left_out_and_shows_it(config):
    told = report(tally_of(pair(1), pair(2, revised_response="The revised answer is clear.")), config())
    assert told["left_out"] == {"meta": 1}
    assert told["examples"]["meta"][0]["revised_response"] == "The revised answer is clear."
    json.dumps(told)


def test_people_are_heard_over_the_detectors():
    tally = Tally()
    meta = pair(1, revised_response="The revised answer is clear.")
    assert tally.add(0, meta, Decision(accepted=True)).usable
    assert not tally.add(1, pair(2), Decision(accepted=False)).usable


def test_edits_are_folded_in_order_and_undo_takes_the_last_one_back():
    edits = [
        {"id": "a", "action": "flip"},
        {"id": "a", "action": "edit", "text": "new"},
        {"id": "a", "action": "reject"},
        {"id": "a", "action": "undo"},
        {"id": "b", "action": "reject"},
        {"id": "b", "action": "undo"},
        {"id": "b", "action": "undo"},
    ]
    decisions = fold_edits(edits)
    assert decisions == {"a": Decision(flipped=True, revised_response="new")}
    edited = apply_decision(pair(1), decisions["a"])
    assert (edited.chosen, edited.revised_response) == ("base", "new")
    assert preference_row(edited)["rejected"] == [{"role": "assistant", "content": "new"}]


def test_held_out_prompts_are_not_trained_on_and_the_parting_is_the_same_every_time():
    pairs = [pair(i) for i in range(40)] + [pair(i, id=f"twin{i}") for i in range(5)]
    train, held = hold_out(pairs, 0.25, 3)
    assert {p.prompt for p in train}.isdisjoint({p.prompt for p in held})
    assert len({p.prompt for p in held}) == 10
    assert hold_out(list(reversed(pairs)), 0.25, 3)[1] == [p for p in reversed(pairs) if p in held]
    assert len({p.prompt for p in hold_out(pairs[:4], 0.25, 20)[1]}) == 2


def test_lines_of_the_notebook_and_of_trl_are_read_and_bad_ones_named():
    notebook = pair_of(3, {"prompt": "p", "base_response": "a", "revised_response": "b", "base_score": None})
    trl = pair_of(
        4,
        {
            "prompt": [{"role": "user", "content": "p"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": "a",
        },
    )
    for read in (notebook, trl):
        assert isinstance(read, Pair)
        assert (read.prompt, read.base_response, read.revised_response) == ("p", "a", "b")
    for bad in (
        {},
        {"prompt": 3, "base_response": "a", "revised_response": "b"},
        {"prompt": "p", "base_response": "a"},
    ):
        assert isinstance(pair_of(9, bad), BadLine)


def test_the_notebooks_published_pairs_are_refused(config):
    result = validate(needs_shared_data("gemma-2b-it-pairs.jsonl"), config())
    assert result.report["pairs"] == 1291
    assert result.report["figures"]["byte_identical"] == 488
    assert not result.open and "usable_share" in result.report["gate"]["failed"]
    assert [verdict.line for verdict in result.verdicts] == list(range(1291))


def test_a_line_that_is_no_pair_is_named_and_the_rest_judged(tmp_path: Path, config):
    path = tmp_path / "pairs.jsonl"
    rows = [json.dumps({"prompt": f"p{i}", "base_response": "a cat", "revised_response": f"b {i}"}) for i in range(3)]
    path.write_text("\n".join([*rows, "{oops", '{"prompt": "x"}']))
    result = validate(path, config())
    assert (result.report["pairs"], [bad.line for bad in result.bad_lines]) == (3, [3, 4])
    assert not result.open
