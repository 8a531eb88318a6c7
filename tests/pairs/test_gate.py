"""The gate: each figure, what it counts, and its error when it refuses a set."""

from __future__ import annotations

import json

import pytest

from engine.pairs.assessment.gate import EXAMPLES_KEPT, NAMES_KEPT, OTHERS, Tally, failed, figures, gate_error, report
from engine.pairs.assessment.training_set import assessed_pairs
from engine.pairs.data.edits import Decision, apply_decision
from engine.pairs.data.hashes import hash_of
from engine.pairs.data.record import Pair
from tests.support.good_pairs import META, pair


def tally_of(*pairs: Pair) -> Tally:
    tally = Tally()
    for line, one in enumerate(pairs):
        tally.add(line, one)
    return tally


def shut_by(config, *pairs: Pair, **options: object) -> list[str]:
    return [figure.name for figure in failed(figures(tally_of(*pairs), config(min_pairs=4, **options)))]


def test_good_pairs_open_the_gate(config):
    assert shut_by(config, *map(pair, range(5))) == []


def test_identical_pairs_shut_it_because_most_of_the_set_cannot_teach(config):
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
    assert improved.passes is None and "not measured" in improved.sentence


def test_a_prompt_without_a_revision_counts_as_made_but_not_as_usable(config):
    tally = tally_of(pair(1), pair(2, status="prompt too long", revised_response=""))
    assert (tally.made, tally.usable, dict(tally.reasons)) == (2, 1, {"prompt too long": 1})


def test_the_report_counts_and_shows_pairs_that_are_left_out(config):
    data = report(tally_of(pair(1), pair(2, revised_response="The revised answer is clear.")), config())
    assert data["left_out"] == {"meta": 1}
    assert data["examples"]["meta"][0]["revised_response"] == "The revised answer is clear."
    json.dumps(data)


def test_peoples_decisions_override_the_detectors():
    tally = Tally()
    assert tally.add(0, pair(1, revised_response=META), Decision(accepted=True)).usable
    assert not tally.add(1, pair(2), Decision(accepted=False)).usable
    assert dict(tally.reasons) == {"rejected": 1}


# -- what the figures count --------------------------------------------------------------------------------------------


def decided(pairs: list[Pair], decisions: dict[str, Decision]) -> Tally:
    tally = Tally()
    list(assessed_pairs(enumerate(pairs), decisions, tally))
    return tally


def value(tally: Tally, config, name: str) -> float | None:
    return next(figure.value for figure in figures(tally, config()) if figure.name == name)


FLIPPED = Decision(flipped=True)


def test_longer_share_is_about_the_text_that_trains_as_chosen(config):
    drafts_are_longer = [pair(i) for i in range(4)]
    flip_all = {each.id: FLIPPED for each in drafts_are_longer}
    assert value(decided(drafts_are_longer, {}), config, "longer_share") == 0.0
    assert value(decided(drafts_are_longer, flip_all), config, "longer_share") == 1.0
    assert value(tally_of(*[pair(i, chosen="base") for i in range(4)]), config, "longer_share") == 1.0


def test_improved_share_follows_a_persons_flip_but_not_the_files_choice_by_the_same_scores(config):
    worse = [pair(i, base_score=0.9, revised_score=0.1) for i in range(4)]
    flip_all = {each.id: FLIPPED for each in worse}
    assert value(decided(worse, {}), config, "improved_share") == 0.0
    assert value(decided(worse, flip_all), config, "improved_share") == 1.0
    chosen_by_score = [pair(i, base_score=0.9, revised_score=0.1, chosen="base") for i in range(4)]
    assert value(tally_of(*chosen_by_score), config, "improved_share") == 0.0


def test_a_tie_is_not_an_improvement_and_is_counted_separately(config):
    tied = [pair(i, revised_score=0.25) for i in range(3)]
    tally = decided([*tied, pair(9)], {"id0": FLIPPED})
    assert (tally.tied, tally.improved, tally.scored) == (3, 1, 4)
    assert report(tally, config())["tied"] == 3
    assert value(tally, config, "improved_share") == 0.25


def test_an_edited_revision_loses_its_old_score():
    assert decided([pair(1), pair(2)], {"id1": Decision(revised_response="Tape it.")}).scored == 1


def test_figures_of_generation_are_counted_before_peoples_edits(config):
    made = [pair(i, revised_response=META) for i in range(4)]
    edits = {f"id{i}": Decision(revised_response=f"Tape thing {i}.") for i in range(4)}
    tally = decided(made, edits)
    assert (tally.training, tally.usable, tally.any_reason["meta"]) == (4, 0, 4)
    assert [figure.name for figure in failed(figures(tally, config(min_pairs=4)))] == ["usable_share"]
    assert report(tally, config())["people"]["edited"] == 4


def test_every_principle_of_the_attempt_that_made_a_pair_is_counted(config):
    both = [pair(i, made_by=("harm", "truth")) for i in range(3)]
    tally = tally_of(*both, pair(8, made_by=("truth",)), pair(9))
    assert dict(tally.principles) == {"truth": 4, "harm": 3}
    assert value(tally, config, "principle_share") == 1.0
    assert report(tally, config())["principles"] == {"truth": 4, "harm": 3}


@pytest.mark.fault("C7")
def test_a_repeated_pair_is_unusable_and_a_shared_prompt_is_a_figure(config):
    one = pair(1)
    tally = tally_of(one, one, pair(1, id="x", revised_response="Tape it."), pair(2))
    assert dict(tally.reasons) == {"duplicate prompt": 1}
    assert (tally.training, tally.training_sharing) == (3, 2)
    assert value(tally, config, "shared_prompt_share") == pytest.approx(2 / 3)
    assert value(tally, config, "usable_share") == 0.75


def test_conversations_with_the_same_last_turn_share_no_prompt():
    def asked(before: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": before},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Can you explain?"},
        ]

    apart = tally_of(pair(1, messages=asked("Is it cold?")), pair(2, messages=asked("Is it late?")))
    assert apart.training_sharing == 0
    assert tally_of(pair(1, messages=asked("Is it cold?")), pair(2, messages=asked("is it COLD"))).training_sharing == 2


def test_a_value_just_below_its_threshold_fails_and_shows_more_digits(config):
    tally = Tally(made=10_000, usable=4_999, training=4_999)
    share = next(figure for figure in figures(tally, config()) if figure.name == "usable_share")
    assert share.passes is False and share.sentence.startswith("49.9900%")
    half = Tally(made=10, usable=5, training=5)
    assert next(figure for figure in figures(half, config()) if figure.name == "usable_share").passes is True


# -- error and report --------------------------------------------------------------------------------------------------


def test_the_error_names_every_figure_that_failed_and_its_remedy(config):
    worse = [
        pair(i, base_score=0.9, revised_score=0.1, messages=[{"role": "user", "content": "same"}]) for i in range(3)
    ]
    shut = failed(figures(tally_of(*worse), config()))
    error = gate_error(shut)
    assert [figure.name for figure in shut] == ["training_pairs", "shared_prompt_share", "improved_share"]
    for figure in shut:
        assert figure.title in error.what and figure.sentence in error.what
        assert figure.remedy in error.what_to_do
    assert "--accept-quality" in error.what_to_do and int(error.exit_code) == 9


def test_every_figure_of_the_report_has_its_threshold_and_whether_it_passes(config):
    data = report(tally_of(pair(1), pair(2, revised_response=META)), config(min_pairs=1))
    by_name = {row["name"]: row for row in data["gate"]["figures"]}
    assert set(by_name) <= {*data["figures"]}
    assert (by_name["usable_share"]["value"], by_name["usable_share"]["threshold"]) == (0.5, 0.5)
    assert by_name["usable_share"]["passes"] is True and by_name["meta_share"]["passes"] is False
    assert by_name["meta_share"]["refuses"] is False and data["gate"]["open"] is True
    json.dumps(data, allow_nan=False)


def test_a_person_opens_the_gate_with_a_recorded_reason_but_not_for_an_empty_or_damaged_set(config):
    accepting = config(accept_quality="a dry run")
    gate = report(tally_of(pair(1)), accepting)["gate"]
    assert (gate["open"], gate["failed"], gate["accepted_for"]) == (True, ["training_pairs"], "a dry run")
    assert report(tally_of(pair(1)), config(min_pairs=1, accept_quality="x"))["gate"]["accepted_for"] is None
    assert not report(tally_of(pair(1, revised_response=META)), accepting)["gate"]["open"]
    for damage in ("bad_lines", "bad_edits"):
        tally = tally_of(pair(1))
        setattr(tally, damage, 1)
        gate = report(tally, accepting)["gate"]
        assert not gate["open"] and damage in gate["failed"]


def test_the_examples_are_the_worst_pairs_whatever_their_order(config):
    scored = [pair(i, base_score=0.5, revised_score=0.5 - i / 100) for i in range(30)]
    meta = [pair(i, id=f"meta{i}", revised_response=f"{META} ({i})", base_score=None) for i in range(100, 130)]
    rows = list(enumerate([*scored, *meta]))

    def examples(order: list[tuple[int, Pair]]) -> dict:
        tally = Tally()
        list(assessed_pairs(order, {}, tally))
        return report(tally, config())["examples"]

    data = examples(rows)
    assert [row["line"] for row in data["not improved"]] == [29, 28, 27, 26, 25]
    assert len(data["meta"]) == EXAMPLES_KEPT
    assert {row["line"] for row in data["meta"]} != {30, 31, 32, 33, 34}  # not just the first ones
    assert data == {**examples(rows[::-1])}
    assert set(data["meta"][0]) == {"id", "line", "prompt", "base_response", "revised_response", "gain"}


def test_examples_are_clipped_and_the_number_of_names_is_limited():
    tally = Tally()
    tally.add(0, pair(0, revised_response=META + " word" * 10_000))
    assert len(tally.examples.as_dict()["meta"][0]["revised_response"]) == 300
    for number in range(2 * NAMES_KEPT):
        tally.add(number, pair(number, status=f"failed in way {number}", made_by=(f"principle {number}",)))
    assert len(tally.reasons) <= NAMES_KEPT + 1 and tally.reasons[OTHERS] > 0
    assert len(tally.principles) <= NAMES_KEPT + 1
    assert sum(tally.reasons.values()) == tally.made


def test_a_hash_distinguishes_where_one_text_ends_and_the_next_begins():
    texts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("1:a",), ("a", ""), ("", "a"), ("\ud800",)]
    assert len({hash_of(*each) for each in texts}) == len(texts)


def test_apply_decision_returns_an_undecided_pair_unchanged():
    one = pair(1)
    assert apply_decision(one, None) is one
