"""One reply under judgement, and its words: taken once, looked at by every detector."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

MARKS_IN_A_ROW = 30
"""Unicode's Stream-Safe Text Format (UAX 15) lets no more combining marks stand in a row."""
LONG = 4_000
"""Characters. Below it, normalising takes milliseconds whatever the marks."""

WORD = re.compile(r"\w+")
_MAY_BE_TEXT_WORK = frozenset(
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
"""One of these is in every prompt that the pattern below finds: looking them up costs a tenth of searching."""
_A_TEXT = (
    r"(?:texts?|letters?|e-?mails?|messages?|essays?|paragraphs?|sentences?|poems?|story|stories|articles?|drafts?|answers?"
    r"|responses?|repl(?:y|ies)|speech|words?|wording|grammar|spelling|punctuation|translation|paper|resume|cv|posts?|reports?"
    r"|reviews?|titles?|summary|lyrics|quotes?|passages?|documents?|lists?|code)"
)
_TEXT_WORK = re.compile(
    r"\b(?:re-?(?:writ(?:e|es|ing|ten)|phras(?:e|ed|ing)|word(?:ing)?)\b|revis(?:e|ing)\b|paraphras(?:e|ing)\b|proofread(?:ing)?\b"
    r"|translat(?:e|ed|ing|ion)\b|summari[sz](?:e|ing)\b|shorten(?:ing)?\b"
    # These are done to taps and bones, too: what is worked on must be a text, quoted, or announced.
    r"|(?:edit|improve|polish|correct|fix|critique|review|repeat|quote|copy|transcribe|complete|continue|format)\b"
    rf"(?=\W*[\"“:]|\s+after\s+me\b|(?:\W+\w+){{1,4}}?\W*(?:[\"“:]|\b{_A_TEXT}\b))"
    r"|(?:feedback|opinion|think)\s+(?:on|about|of)\s+my)",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of `text`, without what a reader would not call a difference: case, punctuation, Unicode form."""
    return WORD.findall(folded(text))


def folded(text: str) -> str:
    """`text` in one case and one Unicode form, with straight quotes."""
    if not text.isascii():
        text = (
            text.replace("’", "'").replace("“", '"').replace("”", '"')
        )  # which leaves most texts in ASCII, the fast way
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", _stream_safe(text)).casefold()


def canonical(text: str) -> str:
    """`text` without what a reader would not call a difference: case, space, punctuation, Unicode form."""
    return " ".join(words(text))


@dataclass(frozen=True)
class Candidate:
    """The last user turn, the draft (None for an answer that revises nothing), and the reply."""

    prompt: str
    draft: str | None
    reply: str
    finished: bool = True
    """False if the generation was cut off at its longest."""
    critique: str = ""
    """Of the draft; empty if there is none."""
    requests: tuple[str, ...] = ()
    """For the critique and the revision, if they are known."""
    relevance: float | None = None
    """How much likelier the prompt makes the reply, in nats (`engine.pairs.relevance`); None if it was not measured."""

    @cached_property
    def asked(self) -> list[str]:
        return words(self.prompt)

    @cached_property
    def drafted(self) -> list[str]:
        return [] if self.draft is None else words(self.draft)

    @cached_property
    def said(self) -> list[str]:
        return self.drafted if self.reply == self.draft else words(self.reply)

    @cached_property
    def criticised(self) -> list[str]:
        return words(self.critique)

    @cached_property
    def text_work(self) -> bool:
        """The user wants a text worked on: there, speaking of a revised version or saying the words again is the job."""
        return not _MAY_BE_TEXT_WORK.isdisjoint(self.asked) and _TEXT_WORK.search(self.prompt) is not None


def _stream_safe(text: str) -> str:
    """Without the marks beyond thirty in a row: sorting them takes `unicodedata.normalize` quadratic time."""
    if len(text) < LONG:
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)
