"""A revision that repeats its instructions: the critique request, the revision request, or its persona."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from engine.pairs.detectors.candidate import Candidate, words
from engine.pairs.principles.constitution import load_constitution

NGRAM_LENGTH = 5
"""The length of an n-gram. None of 2,312 replies that people preferred shares one with the shipped requests."""


def is_request(candidate: Candidate) -> bool:
    """Repeats the candidate's own requests, or those of the shipped constitution, because a file does not name its constitution."""
    if candidate.draft is None:
        return False
    ngrams = _ngrams(candidate.reply_words)
    own = candidate.requests
    repeated = ngrams & shipped_requests() if not own else ngrams & (shipped_requests() | _ngrams_of(own))
    return not repeated <= _ngrams(candidate.prompt_words)


@cache
def shipped_requests() -> frozenset[tuple[str, ...]]:
    principles = load_constitution(None).principles
    return _ngrams_of(text for one in principles for text in (one.critique_request, one.revision_request, one.persona))


def _ngrams_of(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    return frozenset().union(*(_ngrams(words(text)) for text in texts))


def _ngrams(text: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(text[start:] for start in range(NGRAM_LENGTH)), strict=False))
