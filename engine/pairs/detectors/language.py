"""A reply in another language than the prompt, although the user did not ask for it.

Languages are detected by script (Latin, Cyrillic, Arabic, …) and, within Latin, by the most common words of eight languages.
Both texts must clearly be in some language; without enough evidence nothing is reported.
"""

from __future__ import annotations

import re
from collections import Counter

from engine.pairs.detectors.candidate import Candidate

MIN_LETTERS = 4
"""A text with fewer letters has no script: "OK" fits any language."""
MIN_COMMON_WORDS = 4
MIN_COMMON_WORDS_IN_PROMPT = 2
"""Common words that a prompt needs to count as a language: fewer than a reply, because prompts may be short."""
MIN_SHARE = 0.2
"""The share of a text's words that must be common words of a language."""
WORDS_READ = 400
"""How many words of a text are read, and four times as many characters: the language shows early."""

_COMMON = {
    "English": "the and of to is in you that it for are with this not have be can your they from what will would there but as or"
    " how i my a why do when who we me if was",
    "German": "der die das und ist nicht ein eine ich sie es zu mit auf für den dem von sich auch wird sind werden wie oder aber",
    "French": "le les des et est une vous que dans pour pas sur avec qui ce il elle nous sont votre mais cette je au du être",
    "Spanish": "el los las y es una que en por con para no se su lo como más pero del al está son puede este qué usted muy",
    "Italian": "il gli che è una per non con di sono del della si anche come ma più questo nel alla lo ci puoi essere e",
    "Portuguese": "os as é uma que em para não com do da por se mais como mas ao dos você são isso seu também um e o",
    "Dutch": "het een en van ik je niet dat is op te zijn voor met maar ook aan naar kan wordt deze u bij er wat",
    "Swedish": "och att det som en är på för inte med av till den jag du kan har ett om eller men så vi ska var",
}
_WORDS = {language: frozenset(common.split()) for language, common in _COMMON.items()}
_ENGLISH = _WORDS["English"]

LATIN = "Latin"
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_SPANS = {
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Indic": "\u0900-\u0dff",
    "Thai": "\u0e00-\u0e7f",
    "East Asian": "\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af",
}
_SCRIPTS = {name: re.compile(f"[{span}]") for name, span in _SPANS.items()}
_FOREIGN = re.compile(f"[{''.join(_SPANS.values())}]")
_LANGUAGE_REQUEST = re.compile(
    r"\btranslat|\blanguage|\b(?:english|german|french|spanish|italian|portuguese|dutch|swedish|russian|chinese|mandarin"
    r"|japanese|korean|arabic|hebrew|greek|hindi|thai|latin|ukrainian|turkish|polish|deutsch|français|español|italiano|português"
    r"|nederlands|svenska)\b|перев|翻译|翻訳|번역|ترجم|übersetz|tradu",
    re.IGNORECASE,
)


def is_wrong_language(candidate: Candidate) -> bool:
    # Fast path: most pairs are all English, and most of the others are too short to tell.
    english = _is_english(candidate.reply_words)
    if english and (len(candidate.prompt_words) < MIN_COMMON_WORDS or _is_english(candidate.prompt_words)):
        return False
    if len(candidate.reply_words) < MIN_COMMON_WORDS and not _has_foreign(candidate.reply):
        return False
    reply = language_of(candidate.reply, candidate.reply_words)
    if reply is None or reply == LATIN:
        return False
    prompt = language_of(candidate.prompt, candidate.prompt_words, least=MIN_COMMON_WORDS_IN_PROMPT)
    if prompt is None or prompt == reply or (prompt == LATIN and reply in _WORDS):
        return False
    # If the draft is in the reply's language, the conversation before this turn may be, too.
    same_as_draft = candidate.draft is not None and language_of(candidate.draft, candidate.draft_words) == reply
    return not same_as_draft and _LANGUAGE_REQUEST.search(candidate.prompt) is None


def language_of(text: str, words: list[str], least: int = MIN_COMMON_WORDS) -> str | None:
    """One of the eight languages, "Latin" for any other in Latin script, else the script; None if unclear."""
    script = _script_of(text[: 4 * WORDS_READ])
    if script != LATIN:
        return script
    first = words[:WORDS_READ]
    counts = Counter({language: sum(map(common.__contains__, first)) for language, common in _WORDS.items()})
    (best, highest), (_, second) = counts.most_common(2)
    if highest < least or highest < MIN_SHARE * len(first) or 2 * highest < 3 * second:
        return LATIN
    return best


def _is_english(words: list[str]) -> bool:
    first = words[:WORDS_READ]
    return sum(map(_ENGLISH.__contains__, first)) >= MIN_SHARE * len(first)


def _script_of(text: str) -> str | None:
    counts = {LATIN: len(_LATIN.findall(text))}
    if _has_foreign(text):
        counts |= {name: len(letters.findall(text)) for name, letters in _SCRIPTS.items()}
    script = max(counts, key=lambda name: counts[name])
    letters = counts[script]
    return script if letters >= MIN_LETTERS and letters >= 0.6 * sum(counts.values()) else None


def _has_foreign(text: str) -> bool:
    return not text.isascii() and _FOREIGN.search(text) is not None
