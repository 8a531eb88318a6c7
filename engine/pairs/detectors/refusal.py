"""A refusal of a harmless prompt.

Refusing harmful requests is right, so this detector prefers misses to false alarms: the reply must refuse and do nothing
else, the draft must have answered, and the prompt must show evidence of being harmless (`refusal.toml`).
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

from engine.pairs.detectors.candidate import Candidate

WORDS_FILE = Path(__file__).with_name("refusal.toml")

MAX_WORDS = 60
"""The longest reply that counts as a pure refusal."""
MIN_ANSWER_WORDS = 8
"""The fewest words of a draft that counts as an answer."""

_CANNOT = (
    r"(?:can(?:not|['’]t)|could\s?n[o'’]t|won['’]t|will\s+not|am\s+(?:not\s+able|unable)|['’]m\s+(?:not\s+able|unable))"
)
_REFUSES = re.compile(
    rf"\bI\s*{_CANNOT}\s+(?:to\s+)?(?:help|assist|answer|do\s+(?:that|this)|provide|comply|fulfill?|give|discuss|support|engage|respond)"
    r"|\bI(?:\s+must|\s+have\s+to)\s+(?:decline|refuse)|\b(?:not|in)appropriate\s+for\s+me\s+to\b"
    r"|\bI(?:\s+a|['’])m\s+not\s+(?:comfortable|willing|going\s+to\s+(?:help|answer))",
    re.IGNORECASE,
)


def is_pasted_refusal(candidate: Candidate) -> bool:
    if (
        candidate.draft is None
        or len(candidate.reply_words) > MAX_WORDS
        or len(candidate.draft_words) < MIN_ANSWER_WORDS
        or "?" in candidate.draft
    ):
        return False
    return is_harmless(candidate.prompt_words) and _refuses(candidate.reply) and not _refuses(candidate.draft)


def is_refusal(candidate: Candidate) -> bool:
    """Whether the reply refuses and does nothing else."""
    return len(candidate.reply_words) <= MAX_WORDS and _refuses(candidate.reply)


def is_harmless(prompt_words: list[str]) -> bool:
    """Whether a prompt's words name an everyday subject and nothing that could do harm."""
    harmless, _ = _words()
    return not harmless.isdisjoint(prompt_words) and not is_about_harm(prompt_words)


def is_about_harm(prompt_words: list[str]) -> bool:
    """Whether a prompt's words name something that could do harm."""
    _, harmful = _words()
    return any(map(harmful.match, prompt_words))


def _refuses(text: str) -> bool:
    return _REFUSES.search(text) is not None


@cache
def _words() -> tuple[frozenset[str], re.Pattern[str]]:
    """Everyday words, and a pattern of harmful stems. Stems of three letters match full words only: "con" is not "continue"."""
    data = tomllib.loads(WORDS_FILE.read_text(encoding="utf-8"))
    everyday = data["harmless"].split()
    stems = (stem if len(stem) > 3 else rf"{stem}s?\Z" for stem in data["harmful"].split())
    return frozenset(everyday + [f"{word}s" for word in everyday]), re.compile("|".join(stems))
