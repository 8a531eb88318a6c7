"""One reply under test, with its words split once for all detectors."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

MAX_COMBINING_MARKS = 30
"""The most combining marks in a row that Unicode's Stream-Safe Text Format (UAX 15) allows."""
LONG_TEXT = 4_000
"""In characters. Shorter texts normalise in milliseconds, whatever marks they have."""

WORD = re.compile(r"\w+")
_EDITING_WORDS = frozenset(
    [
        "re",
        "rewrite",
        "rewrites",
        "rewriting",
        "rewritten",
        "revise",
        "revising",
        "rephrase",
        "rephrased",
        "rephrasing",
        "reword",
        "rewording",
        "paraphrase",
        "paraphrasing",
        "proofread",
        "proofreading",
        "translate",
        "translated",
        "translating",
        "translation",
        "summarize",
        "summarise",
        "summarizing",
        "summarising",
        "shorten",
        "shortening",
        "edit",
        "improve",
        "polish",
        "correct",
        "fix",
        "critique",
        "review",
        "repeat",
        "quote",
        "copy",
        "transcribe",
        "complete",
        "continue",
        "format",
        "feedback",
        "opinion",
        "think",
    ]
)
"""Every prompt that `_EDITING_REQUEST` matches has one of these words. Looking them up costs a tenth of the search."""
_TEXT_NOUN = (
    r"(?:texts?|letters?|e-?mails?|messages?|essays?|paragraphs?|sentences?|poems?|story|stories|articles?|drafts?|answers?"
    r"|responses?|repl(?:y|ies)|speech|words?|wording|grammar|spelling|punctuation|translation|paper|resume|cv|posts?|reports?"
    r"|reviews?|titles?|summary|lyrics|quotes?|passages?|documents?|lists?|code)"
)
_EDITING_REQUEST = re.compile(
    r"\b(?:re-?(?:writ(?:e|es|ing|ten)|phras(?:e|ed|ing)|word(?:ing)?)\b|revis(?:e|ing)\b|paraphras(?:e|ing)\b|proofread(?:ing)?\b"
    r"|translat(?:e|ed|ing|ion)\b|summari[sz](?:e|ing)\b|shorten(?:ing)?\b"
    # Taps and bones get fixed too, so the object must be a text, quoted, or announced.
    r"|(?:edit|improve|polish|correct|fix|critique|review|repeat|quote|copy|transcribe|complete|continue|format)\b"
    rf"(?=\W*[\"“:]|\s+after\s+me\b|(?:\W+\w+){{1,4}}?\W*(?:[\"“:]|\b{_TEXT_NOUN}\b))"
    r"|(?:feedback|opinion|think)\s+(?:on|about|of)\s+my)",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of `text`, ignoring case, punctuation and Unicode form."""
    return WORD.findall(normalized_text(text))


def normalized_text(text: str) -> str:
    """`text` in lower case and one Unicode form, with straight quotes."""
    if not text.isascii():
        text = text.replace("’", "'").replace("“", '"').replace("”", '"')  # makes most texts ASCII, the fast path
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _stream_safe(text)).casefold()


def canonical(text: str) -> str:
    """`text` reduced to its words, ignoring case, whitespace, punctuation and Unicode form."""
    return " ".join(words(text))


@dataclass(frozen=True)
class Candidate:
    """The last user turn, the draft (None for an answer that is not a revision), and the reply."""

    prompt: str
    draft: str | None
    reply: str
    finished: bool = True
    """False if the generation was cut off at the token limit."""
    critique: str = ""
    """The critique of the draft; empty if there is none."""
    requests: tuple[str, ...] = ()
    """The critique and revision requests, if known."""
    relevance: float | None = None
    """How much more likely the prompt makes the reply, in nats (`engine.pairs.relevance`); None if not measured."""
    surprise: float | None = None
    """How much less likely the reply is than what the model would have drawn, in nats per token; None if not measured."""

    @cached_property
    def prompt_words(self) -> list[str]:
        return words(self.prompt)

    @cached_property
    def draft_words(self) -> list[str]:
        return [] if self.draft is None else words(self.draft)

    @cached_property
    def reply_words(self) -> list[str]:
        return self.draft_words if self.reply == self.draft else words(self.reply)

    @cached_property
    def critique_words(self) -> list[str]:
        return words(self.critique)

    @cached_property
    def asks_for_edit(self) -> bool:
        """Whether the user asks for a text to be edited. A reply may then mention a revised version or repeat words."""
        return not _EDITING_WORDS.isdisjoint(self.prompt_words) and _EDITING_REQUEST.search(self.prompt) is not None


def _stream_safe(text: str) -> str:
    """Drop combining marks beyond thirty in a row, because `unicodedata.normalize` sorts them in quadratic time."""
    if len(text) < LONG_TEXT:
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_COMBINING_MARKS:
            kept.append(character)
    return "".join(kept)
