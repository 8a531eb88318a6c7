"""What would fit any message: its prompt makes it hardly likelier than other messages do."""

from __future__ import annotations

from engine.pairs.detectors.candidate import Candidate

LEAST_RELEVANCE = 6.0
"""Nats."""


def is_off_topic(candidate: Candidate) -> bool:
    """Of a revision alone, and only where it was measured.

    People do ask "What do you mean?", and as an answer that may be sent. As the better half of a pair it teaches a model to
    say so whatever it is told.
    """
    return candidate.draft is not None and candidate.relevance is not None and candidate.relevance < LEAST_RELEVANCE
