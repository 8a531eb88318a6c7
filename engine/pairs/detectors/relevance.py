"""What would fit any message: its prompt makes it hardly likelier than other messages do.

A reply of a few words that name a subject is held to less than one whose words stand in every other conversation: "I think
that's a good idea" gets its relevance from the prompt's manner, not from its matter.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine.pairs.detectors.candidate import Candidate
from engine.pairs.detectors.refusal import is_harmless, is_refusal

LEAST_RELEVANCE = (15.0, 9.0, 5.0)
"""Nats that are asked of a reply with no telling word, with one, and with more (`bench/detectors_by_model.py` measures them)."""
COMMON_WORDS = Path(__file__).with_name("common_words.txt")
"""Words of conversation that name no subject."""


def is_off_topic(candidate: Candidate) -> bool:
    """Of a revision alone.

    People do ask "What do you mean?", and as an answer that may be sent. As the better half of a pair it teaches a model to
    say so whatever it is told.
    """
    return candidate.draft is not None and fits_any_message(candidate)


def fits_any_message(candidate: Candidate) -> bool:
    """Whether its prompt makes a reply hardly likelier than other messages do; False if its relevance was not measured.

    A refusal may be the same for all that is refused, if the prompt may ask for harm; over a harmless one it is another
    detector's (`refusal`).
    """
    if candidate.relevance is None:
        return False
    if is_refusal(candidate) and not is_harmless(candidate.asked):
        return False
    telling = len(set(candidate.said) - common_words())
    return candidate.relevance < LEAST_RELEVANCE[min(telling, len(LEAST_RELEVANCE) - 1)]


@cache
def common_words() -> frozenset[str]:
    return frozenset(COMMON_WORDS.read_text(encoding="ascii").split())
