from __future__ import annotations

import json

import pytest

from engine.pairs import detectors
from engine.pairs.detectors import reasons
from tests.conftest import needs_shared_data

PROMPT = "How do I get red wine out of a carpet?"
DRAFT = "Scrub it with bleach and hope."
GOOD = "Blot it with a cloth, pour on cold water, and blot again until the stain fades."


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("scrub it with  bleach, and hope!", detectors.IDENTICAL),
        ("   ", detectors.EMPTY),
        ("The revised response is clear and answers the question.", detectors.META),
        ("clear and concise, and answers the question.", detectors.META),
        ("I agree with the critique. Blot it.", detectors.META),
        ("How do I get red wine out of a carpet? Blot it.", detectors.ECHO),
        ("Human: blot it.", detectors.LEAK),
        ("Blot it.<end_of_turn>", detectors.LEAK),
        ("...!", detectors.FRAGMENT),
        ("and then you blot it.", detectors.FRAGMENT),
        ("blot it now " * 9, detectors.LOOP),
    ],
)
def test_each_fault_has_its_reason(reply: str, reason: str):
    assert reason in reasons(PROMPT, DRAFT, reply)


@pytest.mark.parametrize(
    "reply", [GOOD, "No.", "Sure: cold water, then salt.", "I would blot it, and rinse. Is it wool?"]
)
def test_a_reply_that_stands_alone_has_none(reply: str):
    assert reasons(PROMPT, DRAFT, reply) == []


def test_a_reply_that_was_cut_off_is_one_and_stands_last():
    assert reasons(PROMPT, DRAFT, GOOD, finished=False) == [detectors.CUT_OFF]


def test_the_same_text_in_another_unicode_form_is_identical():
    assert reasons("?", "ﬁne café", "fine cafe\u0301") == [detectors.IDENTICAL]


def test_real_replies_of_gemma_are_told_from_what_is_none():
    """The plain detectors on the labelled pairs that they were written on: an upper bound, and a floor for regressions."""
    rows = [json.loads(line) for line in needs_shared_data("gemma-2b-it-pairs.jsonl").open(encoding="utf-8")]
    hits = misses = false_alarms = 0
    for line in needs_shared_data("gemma-2b-it-pairs.labels.jsonl").open(encoding="utf-8"):
        label = json.loads(line)
        row = rows[label["line"]]
        found = bool(reasons(row["prompt"], row["base_response"], row["revised_response"]))
        if label["kind"] == "identical":
            assert found
            continue
        hits += found and label["kind"] != "answer"
        misses += not found and label["kind"] != "answer"
        false_alarms += found and label["kind"] == "answer"
    assert 2 * hits / (2 * hits + misses + false_alarms) >= 0.94
