"""Replies that repeat the draft, the prompt, the critique or themselves."""

from __future__ import annotations

import re

from engine.pairs.detectors.candidate import Candidate, words

NEAR_DUPLICATE_WORDS = 12
"""The fewest words of a text in which one changed word is a small change. In a shorter text it is likely a correction."""
_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "with",
        "and",
        "so",
        "also",
        "then",
        "just",
        "very",
        "really",
        "quite",
        "too",
        "is",
        "are",
        "am",
        "was",
        "were",
        "be",
        "m",
        "s",
        "re",
        "ve",
        "ll",
        "d",
        "will",
        "would",
        "can",
        "could",
        "i",
        "you",
        "it",
        "do",
        "does",
        "did",
        "have",
        "has",
        "had",
    ]
)
"""Words that can change without changing the meaning. "Not", "no", "may" and numbers are left out on purpose."""
_CONTRACTIONS = {"m": "am", "re": "are", "ve": "have", "ll": "will", "d": "would"}

TRIGRAM_LENGTH = 3

ECHO_WORDS = 4
"""The fewest words of a prompt that a reply can echo."""
ECHO_BEGINNING = 6
"""The fewest words of the prompt's beginning that count as an echo."""
ECHO_TRIGRAMS = 6
"""The fewest trigrams of the prompt that count as an echo."""

CRITIQUE_SHARE = 0.4
"""The share of the revision's new trigrams that must also occur in the critique."""
CRITIQUE_TRIGRAMS = 3

LOOP_REPEATS = 4
LOOP_WORDS = 12
SHORT_REPEATS = 8
"""Repeats that one or two words need: "very very very very" is normal speech."""
LOOP_WINDOW_WORDS = 4_000
WINDOW_WORDS = 60
"""The window size in words; the window moves by ten words."""
MIN_WINDOW_WORDS = 20
MIN_DISTINCT_SHARE = 0.4
"""The share of distinct words. Of 2,312 replies that people preferred, one in five hundred falls below 0.52 anywhere."""
SENTENCE_WORDS = 5
"""The fewest words of a sentence. People repeat shorter ones, too."""
_SENTENCE_END = re.compile(r"[.!?\n]+")
STUCK_LETTERS = 40
_STUCK = re.compile(r"([^\W_])\1{39}|([^\W\d_]{2,6}?)\2{19}")
"""One letter or digit forty times, or two to six letters twenty times. No language does that, and 10^30 is shorter."""


def is_identical(candidate: Candidate) -> bool:
    return candidate.draft is not None and candidate.draft_words == candidate.reply_words


def is_near_duplicate(candidate: Candidate) -> bool:
    """Is the draft with one small word added, removed or replaced, or with "I'm" spelt out.

    A content word, a number or a "not" may be the very correction that was asked for.
    """
    if (
        candidate.draft is None
        or abs(len(candidate.draft_words) - len(candidate.reply_words)) > TRIGRAM_LENGTH
        or len(candidate.reply_words) < NEAR_DUPLICATE_WORDS
    ):
        return False
    before, after = (
        [_CONTRACTIONS.get(word, word) for word in text] for text in (candidate.draft_words, candidate.reply_words)
    )
    start = _common_prefix_length(before, after)
    end = _common_prefix_length(before[start:][::-1], after[start:][::-1])
    removed, added = before[start : len(before) - end], after[start : len(after) - end]
    if len(removed) > 1 or len(added) > 1 or candidate.draft_words == candidate.reply_words:
        return False
    return _SMALL_WORDS.issuperset(removed + added)


def is_echo(candidate: Candidate) -> bool:
    """Repeats the prompt: starts with all of it, or consists mostly of its words in order."""
    prompt, reply = candidate.prompt_words, candidate.reply_words
    if len(prompt) < ECHO_WORDS or not reply or candidate.asks_for_edit:
        return False
    start = _common_prefix_length(prompt, reply)
    if start == len(prompt):
        return True
    if start >= ECHO_BEGINNING and 5 * start >= 2 * len(prompt) and not {"i", "my", "me"}.isdisjoint(prompt[:start]):
        return True  # the user's "I", in the user's words
    if (
        start < TRIGRAM_LENGTH
        and prompt[0] not in reply[:TRIGRAM_LENGTH]
        and prompt[-1] not in reply[-TRIGRAM_LENGTH:]
        and len(reply) > 2 * len(prompt)
    ):
        return False
    in_prompt, in_reply = _trigrams(prompt), _trigrams(reply)
    shared = len(in_prompt & in_reply)
    return shared >= ECHO_TRIGRAMS and 2 * shared >= len(in_prompt) and 20 * shared >= 7 * len(in_reply)


def is_critique(candidate: Candidate) -> bool:
    """Repeats the critique: much of what the reply adds to the draft is in the critique, word for word.

    Words that the draft shares with the critique do not count, because critiques quote.
    """
    if not candidate.critique_words:
        return False
    new = _trigrams(candidate.reply_words) - _trigrams(candidate.draft_words)
    return len(new) >= CRITIQUE_TRIGRAMS and len(new & _trigrams(candidate.critique_words)) >= CRITIQUE_SHARE * len(new)


def is_loop(candidate: Candidate) -> bool:
    """Says the same thing again and again: the end loops because the model got stuck, fewer than three in five trigrams are new,
    a full sentence is repeated, or some sixty words in a row have too few distinct ones. Of 2,312 replies that people preferred,
    one repeats a sentence, and two have so few new trigrams.
    """
    reply = candidate.reply_words
    if any(_STUCK.search(word) is not None for word in reply if len(word) >= STUCK_LETTERS):
        return True
    # A text has at least as many distinct trigrams as distinct words, minus two, so most texts need no closer look.
    few_words = len(reply) >= LOOP_WORDS and 5 * len(set(reply)) < 3 * len(reply) + 10
    if few_words and 5 * len(_trigrams(reply)) < 3 * (len(reply) - TRIGRAM_LENGTH + 1):
        return True
    return _loops_at_the_end(reply) or _has_few_distinct_words(reply) or _repeats_a_sentence(candidate)


def _repeats_a_sentence(candidate: Candidate) -> bool:
    """Whether a sentence occurs twice; False if the user asks to edit a text, which may have a refrain."""
    if candidate.asks_for_edit or len(candidate.reply_words) < 2 * SENTENCE_WORDS:
        return False
    sentences = [tuple(words(sentence)) for sentence in _SENTENCE_END.split(candidate.reply)]
    long = [sentence for sentence in sentences if len(sentence) >= SENTENCE_WORDS]
    return len(set(long)) < len(long)


def _has_few_distinct_words(reply: list[str]) -> bool:
    """Whether the words go in circles somewhere, with different fillers each time."""
    for start in range(0, max(len(reply) - WINDOW_WORDS, 0) + 1, 10):
        passage = reply[start : start + WINDOW_WORDS]
        if len(passage) >= MIN_WINDOW_WORDS and len(set(passage)) < MIN_DISTINCT_SHARE * len(passage):
            return True
    return False


def _loops_at_the_end(reply: list[str]) -> bool:
    """Whether the text ends in a passage repeated four times in a row (one or two words: eight times).

    The last word may be cut in two, so it is ignored. The words are read backwards and compared with themselves, shifted by
    each period. A long match at one shift implies short matches at most others, so the work stays small.
    """
    if len(reply) < SHORT_REPEATS or reply.count(reply[-2]) < LOOP_REPEATS:
        return False
    back = reply[-2 : -LOOP_WINDOW_WORDS - 2 : -1]
    for period in range(1, len(back) // 2):
        # Minus the ignored last word.
        least = SHORT_REPEATS * period - 1 if period < TRIGRAM_LENGTH else max(LOOP_REPEATS * period - 1, LOOP_WORDS)
        length = period
        while length < len(back) and length < least and back[length - period] == back[length]:
            length += 1
        if length >= least:
            return True
    return False


def _trigrams(text: list[str]) -> set[tuple[str, ...]]:
    """The trigrams of a list of words."""
    return set(zip(text, text[1:], text[2:], strict=False))


def _common_prefix_length(one: list[str], other: list[str]) -> int:
    """The length of the common prefix, in words."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
