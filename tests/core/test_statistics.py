"""The small statistical tests behind the verdict agree with textbook values."""

from __future__ import annotations

import math

import pytest

from engine.core.statistics import (
    bootstrap_mean,
    fraction,
    mcnemar_test,
    mean,
    sign_test,
    wilson,
    win_tie_loss,
)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (10, 4, 2 * 1471 / 16384), (3, 3, 1.0)],
)
def test_the_sign_test_is_exact(wins: int, losses: int, p: float):
    assert sign_test(wins, losses) == pytest.approx(p)
    assert sign_test(losses, wins) == pytest.approx(p)


def test_outcomes_are_counted_as_wins_ties_losses():
    assert win_tie_loss([0.2, -0.1, 0.0, 0.3]) == (2, 1, 1)


def test_mcnemars_test_counts_only_changes():
    before = [True, True, False, False, False, False, False, False]
    after = [True, False, True, True, True, True, True, False]
    assert mcnemar_test(before, after) == pytest.approx(2 * (1 + 6) / 64)  # five up, one down
    assert mcnemar_test(after, before) == 1.0
    assert mcnemar_test([], []) == 1.0


def test_the_bootstrap_is_deterministic_and_contains_the_mean():
    values = [0.11, 0.52, 0.37, 0.94, 0.23, 0.65]
    low, high = bootstrap_mean(values)
    assert (low, high) == bootstrap_mean(values)
    assert 0.11 < low < sum(values) / 6 < high < 0.94
    assert all(math.isnan(bound) for bound in bootstrap_mean([]))


def test_the_wilson_interval_agrees_with_textbooks():
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)


def test_without_values_the_mean_is_nan_and_the_share_is_zero():
    assert math.isnan(mean([])) and fraction([]) == 0.0
