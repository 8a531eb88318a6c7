"""What keeps a text from being a reply that stands alone: one small function a reason.

A detector gets the last user turn, the draft (or None) and the reply, and says whether its reason holds. The order of
`DETECTORS` is the order in which reasons are told; the first one is the verdict's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

IDENTICAL = "identical"
EMPTY = "empty"
META = "meta"
ECHO = "echo"
LEAK = "leak"
FRAGMENT = "fragment"
LOOP = "loop"
CUT_OFF = "cut off"
DUPLICATE_PROMPT = "duplicate prompt"
PROMPT_TOO_LONG = "prompt too long"

LOOP_REPEATS = 4
LOOP_WORDS = 3
MIN_LETTERS = 2

_TEXT = (
    r"(?:answers?|respons\w+|repl(?:y|ies)|drafts?|revisions?|critiques?|rewrites?|suggestions?|statements?|wording)"
)
_WHICH = r"(?:original|revised|first|initial|previous|draft|rewritten|improved|new|updated|above|second|corrected)"
_SAYS = (
    r"(?:is|are|was|were|does|do|did|should|could|would|can|has|have|had|need\w*|contain\w*|provid\w+|address\w*"
    r"|identif\w+|violat\w+|emphasi\w+|accurately|clearly|directly|explicitly|also|now|seems?|appears?|meets?|says?|states?)"
)
_PRAISE = (
    r"(?:clear|clearer|unclear|concise|accurate|inaccurate|helpful|unhelpful|honest|harmless|safe|unsafe|informative|direct"
    r"|specific|vague|correct|incorrect|complete|incomplete|appropriate|inappropriate|ambiguous|unambiguous|irrelevant"
    r"|relevant|neutral|respectful|consistent)"
)
_META = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:the|this|that|my|your|its|an?)\s+(?:{_WHICH}\s+){{1,2}}{_TEXT}\b",
        rf"\b(?:the|this|my|your)\s+(?:\w+\s+)?{_TEXT}\s+(?:itself\s+)?{_SAYS}\b",
        rf"\b{_WHICH}\s+(?:answer|response|draft|reply)\b",
        r"\bthe\s+original\b",
        r"\bconstitutional\s+principles?\b|\bthe\s+constitution(?:al)?\s+(?:rule|guideline)s?\b",
        r"\b(?:agree|disagree)\s+with\s+(?:the|your|this)\s+(?:critique|criticism|revision|feedback)",
        r"\bI(?:'ve|\s+have|\s+will|'d|\s+would|'ll)?\s+(?:also\s+)?(?:like\s+to\s+)?(?:rewr\w+|revis\w+|rephras\w+|reword\w*"
        r"|chang\w+|add(?:ed)?|clarif\w+|improv\w+|remov\w+)\b[^.?!]{0,60}\b(?:answer|response|question|draft|statement"
        r"|sentence|wording|detail|explanation|it\b)",
        rf"^\W*(?:(?:is|are|should|not|also|more|very|a|an)\s+)*{_PRAISE}\b(?:\s*(?:,|\.|and\b|but\b|$))",
        rf"^\W*(?:(?:not|more|very)\s+)?{_PRAISE}\W*$",
        rf"^\W*an?\s+(?:[\w-]+\s+){{0,3}}{_PRAISE}\b[^.]*\b(?:answer|response|reply|example)\b",
        r"^\W*(?:okay|ok|sure|here)[^.?!]{0,20}\b(?:improved|revised|rewritten|better|new)\b[^.?!]{0,20}(?:answer|response|version)",
        r"\b(?:answers?|answering|addresses|addressing)\s+the\s+(?:user'?s?\s+)?question\b(?!\s+if)",
        r"\bthe\s+(?:user|human|person|questioner|asker)(?:\s+(?:who|asking)[^.?!]*)?\s+(?:is|was|wants?|asked|asks|may|might)\b",
        r"\bthe\s+question\s+(?:asked|asks|should|itself|could\s+be|does)\b",
        r"\bthe\s+assistant\s+(?:is|was|should|could|does|did|has)\b|^\W*(?:an?\s+)?assistant\b[^.]*\bshould\b",
        r"\b(?:answer|response)\s+(?:that\s+)?(?:is|was)\s+(?:not\s+)?(?:also\s+)?" + _PRAISE + r"\b",
    )
]
_LEAK = re.compile(
    r"(?:^|\n)\s*(?:human|user|assistant|ai|critique|revision|revised\s+(?:answer|response)|critiquerequest|revisionrequest"
    r"|system)\s*:|<(?:start_of_turn|end_of_turn|bos|eos|pad|\|[a-z_]+\|)>|\[/?(?:INST|SYS)\]",
    re.IGNORECASE,
)


def canonical(text: str) -> str:
    """`text` without what a reader would not call a difference: case, space, punctuation, Unicode form."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def is_identical(prompt: str, draft: str | None, reply: str) -> bool:
    return draft is not None and canonical(draft) == canonical(reply)


def is_empty(prompt: str, draft: str | None, reply: str) -> bool:
    return not reply.strip()


def is_meta(prompt: str, draft: str | None, reply: str) -> bool:
    """Talks about an answer, a revision or a critique instead of replying."""
    return any(pattern.search(reply) for pattern in _META)


def is_echo(prompt: str, draft: str | None, reply: str) -> bool:
    """Repeats the prompt: its words, in their order, and little else."""
    asked, said = canonical(prompt).split(), canonical(reply).split()
    if len(asked) < 4 or not said:
        return False
    return said[: len(asked)] == asked and len(said) < 3 * len(asked)


def is_leak(prompt: str, draft: str | None, reply: str) -> bool:
    """Scaffolding or simulated turns: `Human:`, `Critique:`, control tokens."""
    return _LEAK.search(reply) is not None


def is_fragment(prompt: str, draft: str | None, reply: str) -> bool:
    """No words in it, or a sentence that was begun somewhere else."""
    if sum(character.isalpha() for character in reply) < MIN_LETTERS:
        return True
    return bool(
        re.match(r"^\W*(?:and|but|or|because|which|that|should|would|says|is|are|was)\b(?![^.]*\?)", reply)
    ) and (reply.lstrip()[:1].islower())


def is_loop(prompt: str, draft: str | None, reply: str) -> bool:
    """The same words again and again: one run of three words in a row, four times or more, makes half of the text."""
    words = canonical(reply).split()
    if len(words) < LOOP_WORDS * LOOP_REPEATS:
        return False
    runs = [tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1)]
    most = max(runs.count(run) for run in set(runs))
    return most >= LOOP_REPEATS and len(set(runs)) < len(runs) / 2


Detector = Callable[[str, "str | None", str], bool]

DETECTORS: dict[str, Detector] = {
    IDENTICAL: is_identical,
    EMPTY: is_empty,
    LEAK: is_leak,
    META: is_meta,
    ECHO: is_echo,
    FRAGMENT: is_fragment,
    LOOP: is_loop,
}


def reasons(prompt: str, draft: str | None, reply: str, *, finished: bool = True) -> list[str]:
    """Why `reply` to `prompt` cannot be used as the revision of `draft`; empty where it can.

    finished   False where the generation was cut off at its longest
    """
    found = [name for name, detect in DETECTORS.items() if detect(prompt, draft, reply)]
    if not finished and EMPTY not in found:
        found.append(CUT_OFF)
    return found


def reply_reasons(prompt: str, reply: str, *, finished: bool = True) -> list[str]:
    """The same for an answer that revises nothing."""
    return reasons(prompt, None, reply, finished=finished)
