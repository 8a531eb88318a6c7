"""Replies that would fit any message, and replies whose words do not go together, as measured by a language model.

A reply that names a subject needs less relevance than one made of everyday words: "I think that's a good idea" owes its
relevance to the prompt's tone, not to the prompt's subject.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine.pairs.detectors.candidate import Candidate
from engine.pairs.detectors.refusal import is_harmless, is_refusal

MIN_RELEVANCE = (15.0, 9.0, 5.0)
"""The nats that a reply needs with no subject word, with one, and with more (measured by `bench/detectors_by_model.py`)."""
MAX_SURPRISE = 1.2
"""Nats per token above which a reply is nonsense (measured by `bench/detectors_by_model.py`)."""
WORDS_FOR_SURPRISE = 6
"""In a shorter reply, surprise means nothing: a person's "One sec" has a lot of it."""
COMMON_WORDS = Path(__file__).with_name("common_words.txt")
"""Everyday words that name no subject."""


def is_off_topic(candidate: Candidate) -> bool:
    """Applies to revisions only.

    "What do you mean?" is a fine answer now and then, but as the better half of a pair it teaches a model to answer everything
    with it.
    """
    return candidate.draft is not None and fits_any_message(candidate)


def fits_any_message(candidate: Candidate) -> bool:
    """Whether a reply's prompt makes it hardly more likely than other messages do; False if not measured.

    Refusals may all read the same where the prompt may ask for harm. The `refusal` detector finds those of harmless prompts.
    """
    if candidate.relevance is None:
        return False
    if is_refusal(candidate) and not is_harmless(candidate.prompt_words):
        return False
    subject_words = len(set(candidate.reply_words) - common_words())
    return candidate.relevance < MIN_RELEVANCE[min(subject_words, len(MIN_RELEVANCE) - 1)]


def is_nonsense(candidate: Candidate) -> bool:
    """Whether the model itself would hardly have put these words in a row: sampled too hot, or by a damaged adapter."""
    if candidate.surprise is None or len(candidate.reply_words) < WORDS_FOR_SURPRISE:
        return False
    return candidate.surprise > MAX_SURPRISE


@cache
def common_words() -> frozenset[str]:
    return frozenset(COMMON_WORDS.read_text(encoding="ascii").split())
