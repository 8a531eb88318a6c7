"""The verdict is a function of figures, and no figure alone buys the word `better`."""

from __future__ import annotations

import math

import pytest

from engine.dpo.verdict import Comparison, bootstrap_mean, outcomes, sign_test, verdict, wilson


def judged(before: list[float], after: list[float], unusable_before: int = 0, unusable_after: int = 0) -> Comparison:
    n = len(before)
    return Comparison([i < unusable_before for i in range(n)], [i < unusable_after for i in range(n)], before, after)


def unjudged(n: int, unusable_before: int, unusable_after: int) -> Comparison:
    return Comparison([i < unusable_before for i in range(n)], [i < unusable_after for i in range(n)])


RISING = [0.1 + 0.01 * i for i in range(20)]
HIGHER = [score + 0.3 + 0.007 * i for i, score in enumerate(RISING)]


def test_a_judge_who_prefers_stage_3_every_time_makes_it_better():
    found = verdict(judged(RISING, HIGHER))
    assert found.word == "better"
    assert any("20 better, 0 equal, 0 worse" in reason for reason in found.reasons)


def test_the_same_figures_the_other_way_round_make_it_worse():
    assert verdict(judged(HIGHER, RISING)).word == "worse"


def test_as_many_wins_as_losses_are_no_difference():
    after = [score + (0.21 if i % 2 else -0.2) for i, score in enumerate(RISING)]
    assert verdict(judged(RISING, after)).word == "no different"


def test_equal_answers_are_no_difference():
    assert verdict(judged(RISING, RISING)).word == "no different"


def test_many_small_wins_against_one_large_loss_are_not_better():
    after = [score + 0.01 for score in RISING]
    after[7] -= 9.0
    assert verdict(judged(RISING, after)).word == "no different"


def test_without_a_judge_nobody_can_tell():
    found = verdict(unjudged(40, 3, 2))
    assert found.word == "cannot tell"
    assert "No judge scored the answers." in found.reasons


def test_too_few_prompts_tell_nothing_even_where_all_are_won():
    assert verdict(judged(RISING[:14], HIGHER[:14])).word == "cannot tell"
    assert verdict(judged(RISING[:15], HIGHER[:15])).word == "better"


def test_a_better_score_does_not_count_while_answers_stop_being_usable():
    assert verdict(judged(RISING, HIGHER, unusable_before=0, unusable_after=2)).word == "cannot tell"
    assert verdict(judged(RISING, HIGHER, unusable_before=1, unusable_after=2)).word == "better"


def test_answers_that_break_down_are_worse_whatever_the_judge_says():
    assert verdict(judged(RISING, HIGHER, unusable_before=1, unusable_after=9)).word == "worse"
    assert verdict(unjudged(20, 1, 9)).word == "worse"


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (10, 4, 2 * 1471 / 16384), (3, 3, 1.0)],
)
def test_the_sign_test_is_exact(wins: int, losses: int, p: float):
    assert sign_test(wins, losses) == pytest.approx(p)
    assert sign_test(losses, wins) == pytest.approx(p)


def test_outcomes_are_counted_as_wins_ties_losses():
    assert outcomes([0.2, -0.1, 0.0, 0.3]) == (2, 1, 1)


def test_the_bootstrap_is_the_same_for_the_same_values_and_holds_the_mean():
    values = [0.11, 0.52, 0.37, 0.94, 0.23, 0.65]
    low, high = bootstrap_mean(values)
    assert (low, high) == bootstrap_mean(values)
    assert 0.11 < low < sum(values) / 6 < high < 0.94
    assert all(math.isnan(bound) for bound in bootstrap_mean([]))


def test_the_wilson_interval_is_that_of_the_books():
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
