"""Why a text is not usable as a reply on its own: one small function per reason.

A detector gets a `Candidate` (last user turn, draft or None, reply) and says whether its reason applies. Reasons are reported
in the order of `DETECTORS`; the first one names the verdict.
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
"""Words that do not go together: known only if a model measured it."""
OFF_TOPIC = "off-topic"
"""Would fit any message. Needs a measured relevance."""
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
    """Why `reply` to `prompt` cannot be used as the revision of `draft`; empty if it can.

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
    """The same for an answer that is not a revision."""
    return reasons(prompt, None, reply, finished=finished)
