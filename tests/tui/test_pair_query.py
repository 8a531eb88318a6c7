"""Filtering and sorting in the pair browser: matches, order, and invalid queries."""

from __future__ import annotations

import pytest

from engine.pairs.data.edits import Decision
from tests.support.made_up_run import pair_record
from tui.pair_browser.query import Order, Query, parse
from tui.pair_browser.rows import PairRow, pair_row
from tui.runs.tail import Line


def row(number: int = 1, **changes) -> PairRow:
    decided = {key: changes.pop(key) for key in ("decision", "reasons", "usable") if key in changes}
    made = pair_row(Line(number, 0, 0, {**pair_record(number), **changes}))
    for key, value in decided.items():
        setattr(made, key, value)
    return made


def found(text: str, *rows: PairRow) -> list[int]:
    query = parse(text)
    indices = query.among(rows, range(len(rows)))
    assert indices == [index for index, one in enumerate(rows) if query.matches(one)], "both ways find the same rows"
    return indices


def test_a_filter_requires_every_word_and_excludes_those_after_an_exclamation_mark():
    letter, rude = row(prompt="A polite letter"), row(prompt="A rude LETTER")
    assert found("polite LETTER", letter, rude) == [0]
    assert found("letter !polite", letter, rude) == [1]
    assert found("letter", letter, rude) == [0, 1]
    assert found("  ! ", letter, rude) == [0, 1]


def test_reasons_and_principles_are_found_by_their_beginning():
    meta, loop = (
        row(reasons=("meta", "leak"), usable=False),
        row(reasons=("loop",), usable=False, principle_ids=["HP7"]),
    )
    assert found("reason:me", meta, loop) == [0]
    assert found("reason:leak", meta, loop) == [0]
    assert found("!reason:meta", meta, loop) == [1]
    assert found("principle:hp7", meta, loop) == [1]


@pytest.mark.parametrize(
    ("verdict", "which"),
    [
        ("usable", [0, 3, 4]),
        ("out", [1, 2]),
        ("accepted", [4]),
        ("rejected", [2]),
        ("swapped", [3]),
        ("edited", [3]),
        ("decided", [2, 3, 4]),
        ("flagged", [1]),
        ("flag", [1]),
    ],
)
def test_verdicts_come_from_the_detectors_and_from_people(verdict: str, which: list[int]):
    scores = {"base_score": 0.2, "revised_score": 0.5}
    rows = (
        row(**scores, reasons=(), usable=True),
        row(**scores, reasons=("meta",), usable=False),
        row(**scores, reasons=("meta",), usable=False, decision=Decision(accepted=False)),
        row(**scores, reasons=(), usable=True, decision=Decision(flipped=True, revised_response="x")),
        row(**scores, reasons=("meta",), usable=True, decision=Decision(accepted=True, note="fine")),
    )
    assert found(f"verdict:{verdict}", *rows) == which


def test_a_pair_without_a_gain_is_flagged():
    assert row(base_score=0.5, revised_score=0.5, reasons=(), usable=True).flagged
    assert not row(base_score=0.5, revised_score=0.6, reasons=(), usable=True).flagged


def test_numbers_are_compared_and_rows_without_one_do_not_match():
    better, worse = row(1, base_score=0.25, revised_score=0.75), row(2, base_score=0.75, revised_score=0.5)
    unscored = row(3, base_score=None, revised_score=None)
    assert found("gain>0", better, worse, unscored) == [0]
    assert found("gain<=-0.25", better, worse, unscored) == [1]
    assert found("score>=0.5", better, worse, unscored) == [0, 1]
    assert found("!gain>0", better, worse, unscored) == [1, 2]
    assert found("line=3", better, worse, unscored) == [1]
    assert found("draft<10", row(base_response="short"), row(base_response="a little longer")) == [0]


def test_notes_are_found_by_their_words():
    noted = row(decision=Decision(note="Ask Maria about this"))
    assert found("note:maria", noted, row()) == [0]
    assert found("note:", noted, row()) == [0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gain>", "gain> needs a number"),
        ("gain>much", "gain> needs a number"),
        ("verdict:nice", "verdict: must be one of"),
    ],
)
def test_an_invalid_part_is_reported_and_the_rest_applies(text: str, problem: str):
    query = parse(f"heating {text}")
    assert query.problem.startswith(problem)
    assert query.words == ("heating",)


@pytest.mark.parametrize("text", ["http://x", "a:b", "[/]", "reason", "gain", ">3", "!!", "!gain>"])
def test_any_text_can_be_typed(text: str):
    assert isinstance(parse(text), Query)


def test_another_letter_filters_only_the_previous_matches():
    assert parse("heat").narrows(parse("hea"))
    assert parse("heat cold").narrows(parse("heat"))
    assert not parse("hea").narrows(parse("heat"))
    assert not parse("heat !x").narrows(parse("heat"))
    assert not parse("gain>1").narrows(parse("gain>0"))


def test_rows_without_a_value_come_last_in_either_order():
    rows = [
        row(0, base_score=0.0, revised_score=0.5),
        row(1, base_score=None, revised_score=None),
        row(2, base_score=0.5, revised_score=0.25),
        row(3, base_score=0.1, revised_score=0.9),
    ]
    order = Order("gain")
    assert order.sort(rows, [0, 1, 2, 3]) == [2, 0, 3, 1]
    assert order.turned().sort(rows, [0, 1, 2, 3]) == [3, 0, 2, 1]


def test_sorting_steps_through_the_columns_and_starts_with_the_longest_texts():
    order, seen = Order(), []
    for _ in range(7):
        order = order.next(1)
        seen.append((order.column, order.reverse))
    assert seen == [
        ("verdict", False),
        ("gain", False),
        ("score", False),
        ("draft", True),
        ("revision", True),
        ("prompt", False),
        ("line", False),
    ]
