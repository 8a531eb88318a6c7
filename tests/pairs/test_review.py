"""The gate during review: after any decisions in any order, its figures equal those of the stage."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from engine.pairs.assessment.assess import assess_pair
from engine.pairs.assessment.gate import Counts, Tally, figures
from engine.pairs.assessment.review import Review
from engine.pairs.data.edits import Decision, apply_decision
from engine.pairs.data.record import Pair
from tests.support.good_pairs import META, pair

SEEDS = range(12)


def assessment(made: Pair, decision: Decision | None = None):
    return assess_pair(apply_decision(made, decision), decision, made=made)


def review_of(*pairs: Pair) -> Review:
    review = Review()
    for line, one in enumerate(pairs):
        review.put(line, assessment(one))
    return review


def counted(counts: Counts) -> dict:
    """All counts, with the prompt counter as a number."""
    kept = {
        name: value
        for name, value in vars(counts).items()
        if name not in ("prompts", "examples", "_texts", "min_gain", "methods")
    }
    return {**kept, "sharing": counts.training_sharing}


def tallied(pairs: list[Pair], decisions: dict[int, Decision]) -> tuple[Tally, list]:
    tally = Tally()
    verdicts = [
        tally.add(line, apply_decision(made, decisions.get(line)), decisions.get(line), made=made)
        for line, made in enumerate(pairs)
    ]
    return tally, verdicts


def set_of_pairs(chance: random.Random, count: int = 40) -> list[Pair]:
    """Good and bad pairs, pairs that share a prompt, and duplicates."""
    made = []
    for number in range(count):
        one = pair(chance.randrange(count), id=f"id{number}", made_by=(f"P{chance.randrange(3)}",))
        kind = chance.randrange(6)
        changes = {
            0: {"revised_response": META},
            1: {"revised_response": one.base_response},
            2: {"base_score": 0.9, "revised_score": round(chance.random(), 2)},
            3: {"status": "prompt too long", "revised_response": ""},
        }.get(kind, {})
        made.append(Pair(**{**asdict(one), **changes}))
    return made


def a_decision(chance: random.Random) -> Decision | None:
    return chance.choice(
        [
            None,
            Decision(accepted=True),
            Decision(accepted=False),
            Decision(flipped=True),
            Decision(accepted=True, flipped=True),
            Decision(revised_response=f"Ask somebody who knows thing {chance.randrange(3)}, and pay them well."),
            Decision(base_response="Never mind it.", note="a note"),
        ]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_decisions_figures_and_verdicts_equal_those_of_the_stage(seed, config):
    chance = random.Random(seed)
    pairs, decisions = set_of_pairs(chance), {}
    order = list(range(len(pairs)))
    chance.shuffle(order)  # a file is read in pieces, and assessed where a person is looking
    review = Review()
    for line in order:
        review.put(line, assessment(pairs[line]))
    for _ in range(60):
        line = chance.randrange(len(pairs))
        decision = a_decision(chance)
        decisions = {**decisions, line: decision} if decision else {k: v for k, v in decisions.items() if k != line}
        review.put(line, assessment(pairs[line], decision))
        tally, verdicts = tallied(pairs, decisions)
        assert counted(review.counts) == counted(tally)
        assert [review.usable(line) for line in range(len(pairs))] == [verdict.usable for verdict in verdicts]
    assert figures(review.counts, config()) == figures(tally, config())


def test_rejecting_the_first_of_two_duplicates_leaves_the_second_a_duplicate():
    """As in the stage, where detectors see the duplicate whatever people decided."""
    twin = [pair(1, id="a"), pair(1, id="b")]
    review = review_of(*twin)
    assert (review.usable(0), review.usable(1)) == (True, False)
    assert review.reasons(1) == ("duplicate prompt",)
    review.put(0, assessment(twin[0], Decision(accepted=False)))
    assert (review.usable(0), review.usable(1)) == (False, False)


def test_editing_the_first_of_two_duplicates_makes_the_second_usable_and_reports_both():
    twin = [pair(1, id="a"), pair(1, id="b")]
    review = review_of(*twin)
    edited = assessment(twin[0], Decision(revised_response="Look at thing 1 in good light, then ask."))
    assert review.put(0, edited) == [0, 1]
    assert (review.usable(0), review.usable(1)) == (True, True)
    assert review.put(0, assessment(twin[0])) == [0, 1]
    assert not review.usable(1)


def test_one_decision_can_shut_and_open_the_gate(config):
    review = review_of(*map(pair, range(4)))
    pairs_left = lambda: next(f for f in figures(review.counts, config(min_pairs=4)) if f.name == "training_pairs")  # noqa: E731
    assert pairs_left().passes
    review.put(2, assessment(pair(2), Decision(accepted=False)))
    assert (pairs_left().value, pairs_left().passes) == (3, False)
    review.put(2, assessment(pair(2)))
    assert pairs_left().passes
