"""Estimates from part of the pairs: when the gate can no longer open, and when it still can."""

from __future__ import annotations

from random import Random

import pytest

from engine.core.errors import DataError
from engine.pairs.assessment.outlook import (
    Outlook,
    improved_estimate,
    require_reachable,
    too_long_estimate,
    usable_estimate,
)

WORDING = {"what": "No hope", "why": "Because.", "pairs_path": "pairs.jsonl"}


@pytest.mark.parametrize(("usable", "hopeless"), [(0, True), (7, True), (8, False), (12, False), (24, False)])
def test_a_pilot_of_24_refuses_if_the_upper_end_of_its_interval_is_below_the_threshold(config, usable, hopeless):
    estimate = usable_estimate(usable, 24, config())
    assert estimate.hopeless == hopeless and (estimate.interval[1] < 0.5) == hopeless


def test_a_share_with_an_upper_limit_is_hopeless_if_its_lower_end_is_above_it(config):
    assert too_long_estimate(6, 24, config()).hopeless
    assert not too_long_estimate(3, 24, config()).hopeless, "12 % so far, and it may still be under 5 % of the full set"


def test_a_share_without_measurements_is_not_hopeless(config):
    estimate = improved_estimate(0, 0, config())
    assert not estimate.hopeless and estimate.share is None and "not measured" in estimate.sentence


def test_the_error_names_the_figure_its_interval_and_its_remedy(config):
    with pytest.raises(DataError) as refused:
        require_reachable([usable_estimate(2, 24, config()), too_long_estimate(0, 24, config())], config(), **WORDING)
    assert "usable share is 2 of 24, 8% (2% to 26%); the gate needs at least 50%" in refused.value.what
    assert "too long" not in refused.value.what
    for option in ("--method contrast", "--few-shot", "--constitution", "--accept-quality", "pairs.jsonl"):
        assert option in refused.value.what_to_do
    assert refused.value.exit_code == 9


def test_the_remedy_suggests_nothing_that_the_run_already_uses(config):
    assert "--method contrast" not in usable_estimate(0, 9, config(method="contrast")).remedy
    assert "--few-shot" not in usable_estimate(0, 9, config(method="contrast")).remedy, "a contrast uses no examples"


def test_the_error_names_why_the_other_prompts_were_left_out(config):
    left_out = [("meta", 12), ("identical", 7), ("loop", 2), ("leak", 1)]
    with pytest.raises(DataError, match=r"Left out: meta \(12\), identical \(7\), loop \(2\)\.") as refused:
        require_reachable([usable_estimate(2, 24, config(), left_out=left_out)], config(), **WORDING)
    assert "--method contrast" in refused.value.what_to_do


@pytest.mark.fault("C6")
def test_empty_answers_get_another_remedy_than_a_new_constitution(config):
    nothing = [("empty draft", 20), ("meta", 4)]
    remedy = usable_estimate(0, 24, config(), left_out=nothing).remedy
    assert "--constitution" not in remedy and "--chat-template" in remedy and "--dtype float32" in remedy
    remedy = usable_estimate(
        0, 24, config(server_url="http://localhost:1/v1", server_model="ours"), left_out=nothing
    ).remedy
    assert "--constitution" not in remedy and "ask ours one question by hand" in remedy
    assert "--constitution" in usable_estimate(0, 24, config(), left_out=[("empty draft", 4), ("meta", 20)]).remedy


def test_accept_quality_continues_with_a_warning(config):
    accepts = config(accept_quality="to look at them")
    assert "to look at them" in require_reachable([usable_estimate(0, 24, accepts)], accepts, **WORDING)
    assert require_reachable([usable_estimate(24, 24, accepts)], accepts, **WORDING) == ""


# -- while pairs are generated -----------------------------------------------------------------------------------------


def hopeless(outlook: Outlook, usable: int, asked: int, too_long: int = 0) -> list[str]:
    return [estimate.name for estimate in outlook.estimates(usable, asked, too_long) if estimate.hopeless]


def test_a_run_ends_early_if_hardly_anything_is_usable(config):
    outlook = Outlook(config(), 2500)
    assert hopeless(outlook, 0, 47) == [], "too early to tell"
    assert hopeless(outlook, 0, 48) == ["usable_share"]
    assert hopeless(outlook, 100, 200) == []


def test_a_run_at_the_threshold_does_not_end_early_by_chance(config):
    """400 runs of 40 looks each with half of the pairs usable: at 95 %, a third of the runs would end early."""
    outlook, ended_early = Outlook(config(min_pairs=1), 5000), 0
    for seed in range(400):
        draw, usable = Random(seed), 0
        for asked in range(50, 2050, 50):
            usable += sum(draw.random() < 0.5 for _ in range(50))
            if hopeless(outlook, usable, asked):
                ended_early += 1
                break
    assert ended_early <= 4  # of 400; more would have a probability under 1 % if 0.2 % of the runs ended early


def test_prompts_that_are_too_long_raise_the_threshold_for_the_others(config):
    outlook = Outlook(config(min_pairs=1), 100)
    assert hopeless(outlook, 24, 48) == []
    assert hopeless(outlook, 24, 48, too_long=40) == ["usable_share"], (
        "50 of the 60 prompts that fit would have to give a pair"
    )


def test_too_few_training_pairs_are_foreseen_early(config):
    assert hopeless(Outlook(config(min_pairs=150), 160), 30, 60) == ["training_pairs"]
    assert hopeless(Outlook(config(min_pairs=150), 120), 30, 60) == [], (
        "it never could, since so few prompts were requested"
    )
    assert hopeless(Outlook(config(min_pairs=150), None), 30, 60) == [], (
        "prompts are drawn until there are enough pairs"
    )


def test_a_complete_set_is_left_to_the_gate(config):
    assert hopeless(Outlook(config(), 100), 0, 90, too_long=10) == []
