"""The sanitiser and the redactor, for any text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.security import redaction
from engine.security.redaction import MASK, redact, redacted, register_secret
from engine.security.sanitize import visible, visible_line
from tests.properties.values import PLAIN, TEXT

ANY = st.lists(st.one_of(st.characters(codec=None), st.text(max_size=5), TEXT), max_size=12).map("".join)


def controls_a_terminal(character: str) -> bool:
    """Whether Unicode lists it as a control character, a surrogate, a line separator or a change of direction."""
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return True
    return unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@pytest.mark.fault("G1", "G4", "G6")
@given(ANY)
def test_no_text_controls_the_terminal_that_shows_it(text: str):
    shown = visible(text)
    assert not any(controls_a_terminal(character) for character in shown if character not in "\n\t")
    assert visible(shown) == shown
    shown.encode()  # no lone surrogate


@given(ANY, st.integers(1, 30))
def test_a_line_stays_one_line_within_its_limit(text: str, limit: int):
    line = visible_line(text, limit)
    assert len(line) <= limit and not any(controls_a_terminal(character) for character in line)


@given(st.text(st.characters(categories=("L", "N", "P")), max_size=40))
def test_ordinary_text_is_shown_unchanged(text: str):
    assert visible(text) == text


# -- secrets -----------------------------------------------------------------------------------------------------------

LETTERS = "abcdefABCDEF0123456789_-./+"
SECRET = st.text(LETTERS, min_size=8, max_size=20)


@contextmanager
def only_these(secrets: list[str]) -> Iterator[None]:
    before = set(redaction._known)
    redaction._known.clear()
    try:
        for secret in secrets:
            register_secret(secret)
        yield
    finally:
        redaction._known.clear()
        redaction._known.update(before)


@given(st.lists(SECRET, min_size=1, max_size=3), st.lists(TEXT, min_size=2, max_size=5), st.data())
def test_no_secret_is_left_anywhere_in_a_text(secrets: list[str], around: list[str], data: st.DataObject):
    text = "".join(part + data.draw(st.sampled_from(secrets)) for part in around)
    with only_these(secrets):
        shown = redact(text)
        assert not any(secret in shown for secret in secrets)
        assert redact(shown) == shown and MASK in shown


@given(st.lists(SECRET, min_size=1, max_size=2), PLAIN, st.data())
def test_no_secret_is_left_in_the_keys_or_values_of_plain_data(secrets: list[str], value: Any, data: st.DataObject):
    secret = data.draw(st.sampled_from(secrets))
    with only_these(secrets):
        shown = redacted({"a": [value, {secret: f"x{secret}y"}], f"k{secret}": (secret, 1)})
    assert not any(secret in repr(shown) for secret in secrets)


@given(st.text(st.characters(exclude_characters="_", codec="utf-8"), max_size=60))
def test_a_text_without_secrets_is_returned_as_it_is(text: str):
    with only_these([]):
        assert redact(text) is text


@given(TEXT, st.text("abcXYZ019", min_size=20, max_size=40), TEXT)
def test_anything_shaped_like_a_hub_token_is_masked_even_if_it_was_never_registered(before: str, rest: str, after: str):
    with only_these([]):
        assert f"hf_{rest}" not in redact(f"{before} hf_{rest} {after}")
