"""The longest pair that the limits allow, on which the rehearsal trains, can be made from any texts."""

from __future__ import annotations

import pytest

from engine.core.config import Stage3Config, load_config
from engine.demo.preset import demo_defaults
from engine.dpo.training.dataset import measure_lengths
from engine.models.loading import load_tokenizer
from engine.pairs.data.record import Pair
from engine.preflight.rehearsal import longest_row


@pytest.fixture(scope="module")
def demo() -> Stage3Config:
    return load_config({}, preset=demo_defaults(), environment={})


@pytest.mark.fault("C6")
@pytest.mark.parametrize(
    ("draft", "revision"), [("", ""), (" \n", "  "), ("Yes", "Yes"), ("Mend it.", "Mend it kindly.")]
)
def test_it_fills_the_limit_and_its_replies_differ_whatever_the_texts(draft: str, revision: str, demo: Stage3Config):
    """Empty answers are reported by the pilot, not by an error about two equal replies."""
    tokenizer = load_tokenizer(demo)
    question = [{"role": "user", "content": "How do I mend it?"}]
    pair = Pair("id", "How do I mend it?", question, base_response=draft, revised_response=revision)
    row = longest_row(pair, tokenizer, 60)
    assert 54 <= measure_lengths([row], tokenizer)[0] <= 60
    assert row["chosen"] != row["rejected"]
