"""The three key figures of a verdict, and the answers shown beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.dpo.evaluation.answered_prompts import FILTERS, answered_prompts_from, read_answered_prompts
from engine.dpo.evaluation.key_figures import BY_RULE, DEFAULT, FIGURES, key_figures
from engine.dpo.evaluation.verdict import RULES
from tests.support.made_up_run import report

MEASURED = report()["figures"]


def test_every_rule_with_its_own_figures_is_a_rule_of_the_verdict():
    assert set(BY_RULE) <= {name for name, _, _ in RULES}
    assert all(set(names) <= set(FIGURES) for names in (*BY_RULE.values(), DEFAULT))


def test_a_judged_verdict_shows_the_preference_broken_answers_and_refusals():
    preferred, broken, refused = key_figures("judged better", MEASURED)
    assert (preferred.value, preferred.mark, preferred.counts) == (24 / 33, 0.5, "24 better, 7 equal, 9 worse")
    assert 0.5 < preferred.low < preferred.value < preferred.high < 1
    assert (broken.value, broken.mark, broken.counts) == (0.05, 0.075, "3 before, 2 after, of 40 prompts")
    assert (refused.value, refused.mark) == (0.04, 0.0)
    assert refused.counts == "0 before, 1 after, of 25 harmless prompts"


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("wrong way round", ["Held-out accuracy", "Held-out margin, nats", "Judge prefers Stage 3"]),
        ("more broken", ["Broken answers", "Judge prefers Stage 3", "Refused harmless prompts"]),
        ("", ["Judge prefers Stage 3", "Broken answers", "Refused harmless prompts"]),
    ],
)
def test_the_figures_that_a_rule_is_about_come_first(rule: str, names: list[str]):
    assert [one.name for one in key_figures(rule, MEASURED)] == names


def test_fewer_unfit_answers_show_their_share_first():
    known = {**MEASURED, "stage2_unfit_share": 0.4, "stage3_unfit_share": 0.1}
    unfit, *others = key_figures("fewer unfit answers", known)
    assert (unfit.name, unfit.value, unfit.mark) == ("Unfit answers", 0.1, 0.4)
    assert unfit.counts == "16 before, 4 after, of 40 prompts"
    assert [one.name for one in others] == ["Broken answers", "Refused harmless prompts"]


def test_figures_that_were_not_measured_are_skipped_and_never_shown_as_zero():
    unjudged = {key: value for key, value in MEASURED.items() if key not in ("wins", "ties", "losses")}
    assert [one.name for one in key_figures("no judge", unjudged)] == [
        "Held-out accuracy", "Broken answers", "Refused harmless prompts"
    ]  # fmt: skip
    assert key_figures("judged better", {"wins": "many", "margin": None, "margin_low": float("nan")}) == ()


def test_the_answers_of_a_report_are_read_with_their_flags(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report()), encoding="utf-8")
    answers = read_answered_prompts(path)
    counted = {kind: sum(map(fits, answers)) for kind, fits in FILTERS.items()}
    assert counted == {
        "all": 40,
        "better": 24,
        "equal": 7,
        "worse": 9,
        "broken": 2,
        "unfit": 3,
        "refused": 1,
        "harmful": 7,
    }


@pytest.mark.parametrize("text", ["", "[]", '{"samples": 3}', '{"samples": [1, {"stage2": "x"}]}', "[" * 100_000])
def test_a_report_that_cannot_be_read_has_no_answers(tmp_path: Path, text: str):
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    assert read_answered_prompts(path) == ()


def test_answers_of_an_event_have_only_texts():
    (one,) = answered_prompts_from([{"prompt": "Why?", "stage2": "So.", "stage3": "Thus."}])
    assert (one.stage3, one.gain, one.preference, one.stage3_unusable) == ("Thus.", None, "", False)
