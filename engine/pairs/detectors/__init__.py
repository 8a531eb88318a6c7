"""Why a text is not usable as a reply on its own: one small function per reason.

A detector takes a `Candidate` (last user turn, draft or None, reply) and returns whether its reason applies. Reasons are
reported in the order of `DETECTORS`, and the first one is the verdict.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.pairs.detectors.candidate import Candidate, canonical
from engine.pairs.detectors.language import is_wrong_language
from engine.pairs.detectors.malformed import is_cut_off, is_empty, is_fragment, is_leak
from engine.pairs.detectors.meta import is_meta
from engine.pairs.detectors.refusal import is_pasted_refusal
from engine.pairs.detectors.relevance import is_nonsense, is_off_topic
from engine.pairs.detectors.repetition import is_critique, is_echo, is_identical, is_loop, is_near_duplicate
from engine.pairs.detectors.request import is_request

__all__ = ["DETECTORS", "Candidate", "canonical", "reasons", "reply_reasons"]

IDENTICAL = "identical"
EMPTY = "empty"
META = "meta"
ECHO = "echo"
CRITIQUE = "critique"
REQUEST = "request"
LEAK = "leak"
FRAGMENT = "fragment"
LOOP = "loop"
NEAR_DUPLICATE = "near-duplicate"
REFUSAL = "refusal"
WRONG_LANGUAGE = "wrong language"
NONSENSE = "nonsense"
"""Words that do not go together; found only if a model has measured the reply."""
OFF_TOPIC = "off-topic"
"""The reply would fit any message; found only if its relevance has been measured."""
CUT_OFF = "cut off"
DUPLICATE_PROMPT = "duplicate prompt"
"""Found by the gate's tally, which sees all pairs."""
PROMPT_TOO_LONG = "prompt too long"
"""Set when the pair is generated."""

Detector = Callable[[Candidate], bool]

DETECTORS: dict[str, Detector] = {
    IDENTICAL: is_identical,
    EMPTY: is_empty,
    META: is_meta,
    LEAK: is_leak,
    ECHO: is_echo,
    CRITIQUE: is_critique,
    REQUEST: is_request,
    LOOP: is_loop,
    FRAGMENT: is_fragment,
    NEAR_DUPLICATE: is_near_duplicate,
    REFUSAL: is_pasted_refusal,
    WRONG_LANGUAGE: is_wrong_language,
    CUT_OFF: is_cut_off,
    NONSENSE: is_nonsense,
    OFF_TOPIC: is_off_topic,
}


def reasons(
    prompt: str,
    draft: str | None,
    reply: str,
    *,
    finished: bool = True,
    critique: str = "",
    requests: tuple[str, ...] = (),
    relevance: float | None = None,
    surprise: float | None = None,
) -> list[str]:
    """Why `reply` to `prompt` is not usable as the revision of `draft`; empty if it is.

    finished    False if the generation was cut off at the token limit
    critique    the critique of the draft, which the reply must not repeat
    requests    the critique and revision requests, which the reply must not repeat either
    relevance   how much more likely the prompt makes the reply, in nats; None if not measured
    surprise    how much less likely the reply is than what the model would have drawn, in nats per token; None if not measured
    """
    candidate = Candidate(prompt, draft, reply, finished, critique, requests, relevance, surprise)
    first = [name for name in (IDENTICAL, EMPTY) if DETECTORS[name](candidate)]
    if first:
        return first  # other reasons would add nothing
    return [name for name, holds in DETECTORS.items() if holds(candidate)]


def reply_reasons(prompt: str, reply: str, *, finished: bool = True) -> list[str]:
    """Why `reply` to `prompt` is not usable as an answer that is not a revision; empty if it is."""
    return reasons(prompt, None, reply, finished=finished)
