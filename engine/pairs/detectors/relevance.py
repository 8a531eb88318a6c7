"""What a model that reads a reply finds: it would fit any message, or its words do not go together.

A reply that names a subject needs less relevance than one made of everyday words: "I think that's a good idea" owes its
relevance to the prompt's tone, not to its subject.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine.pairs.detectors.candidate import Candidate
from engine.pairs.detectors.refusal import is_harmless, is_refusal

MIN_RELEVANCE = (15.0, 9.0, 5.0)
"""Nats needed by a reply with no subject word, with one, and with more (measured by `bench/detectors_by_model.py`)."""
MAX_SURPRISE = 1.2
"""Nats per token above which a reply is nonsense (measured by `bench/detectors_by_model.py`)."""
WORDS_FOR_SURPRISE = 6
"""In a shorter reply, surprise says nothing: a person's "One sec" has a lot of it."""
COMMON_WORDS = Path(__file__).with_name("common_words.txt")
"""Everyday words that name no subject."""


def is_off_topic(candidate: Candidate) -> bool:
    """Applies to revisions only.

    "What do you mean?" is a fine answer now and then, but as the better half of a pair it teaches a model to say so to
    anything.
    """
    return candidate.draft is not None and fits_any_message(candidate)


def fits_any_message(candidate: Candidate) -> bool:
    """Whether a reply's prompt makes it hardly more likely than other messages do; False if not measured.

    A refusal may always read the same if the prompt may ask for harm; over a harmless prompt it is up to the `refusal`
    detector.
    """
    if candidate.relevance is None:
        return False
    if is_refusal(candidate) and not is_harmless(candidate.prompt_words):
        return False
    telling = len(set(candidate.reply_words) - common_words())
    return candidate.relevance < MIN_RELEVANCE[min(telling, len(MIN_RELEVANCE) - 1)]


def is_nonsense(candidate: Candidate) -> bool:
    """Words that the model itself would hardly have put behind each other: sampled too hot, or by a damaged adapter."""
    if candidate.surprise is None or len(candidate.reply_words) < WORDS_FOR_SURPRISE:
        return False
    return candidate.surprise > MAX_SURPRISE


@cache
def common_words() -> frozenset[str]:
    return frozenset(COMMON_WORDS.read_text(encoding="ascii").split())
