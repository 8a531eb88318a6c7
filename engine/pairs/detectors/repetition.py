"""What says nothing new: the draft again, the prompt again, the same words again and again."""

from __future__ import annotations

import re

from engine.pairs.detectors.candidate import Candidate, words

NEAR_LENGTH = 12
"""Words that draft and reply share before one changed word is small. In a shorter text it is likely a correction."""
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
"""A change among these leaves what is said as it was. "Not", "no", "may" and numbers are no small words."""
_EXPANDED = {"m": "am", "re": "are", "ve": "have", "ll": "will", "d": "would"}

ECHO_WORDS = 4
ECHO_BEGINNING = 6
ECHO_RUNS = 6
RUN = 3

CRITIQUE_SHARE = 0.4
"""Of what a revision says that its draft does not: in the critique, as runs of three words."""
CRITIQUE_RUNS = 3

LOOP_REPEATS = 4
LOOP_WORDS = 12
LONE_REPEATS = 8
"""How often one or two words must stand in a row: "very very very very" is speech."""
LAST_WORDS = 4_000
FEW_WORDS_AMONG = 60
"""Words in a row, looked at ten further each time."""
FEW_WORDS_AT_LEAST = 20
FEW_WORDS = 0.4
"""Share of different words. Of 2,312 replies that people preferred, one in five hundred falls below 0.52 anywhere."""
SENTENCE_WORDS = 5
"""Shorter ones are said twice by people, too."""
_SENTENCE_END = re.compile(r"[.!?\n]+")
STUCK_LETTERS = 40
_STUCK = re.compile(r"([^\W_])\1{39}|([^\W\d_]{2,6}?)\2{19}")
"""Forty times one letter or digit, twenty times two to six letters. No language writes so, and 10^30 is shorter."""


def is_identical(candidate: Candidate) -> bool:
    return candidate.draft is not None and candidate.drafted == candidate.said


def is_near_duplicate(candidate: Candidate) -> bool:
    """The draft but for one small word put in, left out or exchanged, or for "I'm" spelt out.

    A word with a sense of its own, a number or a "not" may be the very correction that was asked for.
    """
    if (
        candidate.draft is None
        or abs(len(candidate.drafted) - len(candidate.said)) > RUN
        or len(candidate.said) < NEAR_LENGTH
    ):
        return False
    before, after = ([_EXPANDED.get(word, word) for word in text] for text in (candidate.drafted, candidate.said))
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    removed, added = before[start : len(before) - end], after[start : len(after) - end]
    if len(removed) > 1 or len(added) > 1 or candidate.drafted == candidate.said:
        return False
    return _SMALL_WORDS.issuperset(removed + added)


def is_echo(candidate: Candidate) -> bool:
    """Repeats the prompt: begins with all of it, or says little but its words in their order."""
    asked, said = candidate.asked, candidate.said
    if len(asked) < ECHO_WORDS or not said or candidate.text_work:
        return False
    start = _shared(asked, said)
    if start == len(asked):
        return True
    if start >= ECHO_BEGINNING and 5 * start >= 2 * len(asked) and not {"i", "my", "me"}.isdisjoint(asked[:start]):
        return True  # the user's "I", in the user's words
    if start < RUN and asked[0] not in said[:RUN] and asked[-1] not in said[-RUN:] and len(said) > 2 * len(asked):
        return False
    in_prompt, in_reply = _runs(asked), _runs(said)
    shared = len(in_prompt & in_reply)
    return shared >= ECHO_RUNS and 2 * shared >= len(in_prompt) and 20 * shared >= 7 * len(in_reply)


def is_critique(candidate: Candidate) -> bool:
    """Repeats the critique: of what it says beyond the draft, much stands there in the same words.

    What draft and critique have in common counts for nothing: a critique quotes.
    """
    if not candidate.criticised:
        return False
    new = _runs(candidate.said) - _runs(candidate.drafted)
    return len(new) >= CRITIQUE_RUNS and len(new & _runs(candidate.criticised)) >= CRITIQUE_SHARE * len(new)


def is_loop(candidate: Candidate) -> bool:
    """The same words again and again: at the end, if a model got stuck; through much of the text, so that fewer than three
    in five of its runs of three words are new; a whole sentence said twice; or so few words through some sixty in a
    row as no speaker gets by with. Of 2,312 replies that people preferred, one says a sentence twice, and two have so few new
    runs.
    """
    said = candidate.said
    if any(_STUCK.search(word) is not None for word in said if len(word) >= STUCK_LETTERS):
        return True
    # A text has at least as many different runs as different words, but for two: most need no closer look.
    few_words = len(said) >= LOOP_WORDS and 5 * len(set(said)) < 3 * len(said) + 10
    if few_words and 5 * len(_runs(said)) < 3 * (len(said) - RUN + 1):
        return True
    return _is_stuck_at_the_end(said) or _has_few_words(said) or _says_a_sentence_twice(candidate)


def _says_a_sentence_twice(candidate: Candidate) -> bool:
    """Not if the user works on a text, in which a refrain may stand."""
    if candidate.text_work or len(candidate.said) < 2 * SENTENCE_WORDS:
        return False
    sentences = [tuple(words(sentence)) for sentence in _SENTENCE_END.split(candidate.reply)]
    long = [sentence for sentence in sentences if len(sentence) >= SENTENCE_WORDS]
    return len(set(long)) < len(long)


def _has_few_words(said: list[str]) -> bool:
    """Whether somewhere the words turn in a circle, with other fillers each time round."""
    for start in range(0, max(len(said) - FEW_WORDS_AMONG, 0) + 1, 10):
        passage = said[start : start + FEW_WORDS_AMONG]
        if len(passage) >= FEW_WORDS_AT_LEAST and len(set(passage)) < FEW_WORDS * len(passage):
            return True
    return False


def _is_stuck_at_the_end(said: list[str]) -> bool:
    """Whether the text ends in a passage that stands there four times in a row (one or two words: eight times).

    The last word may be cut in two, so it is left out. The words are read backwards and compared with themselves shifted
    by each period. A long match at one shift that is no loop leaves only short ones at most others, so the work stays small.
    """
    if len(said) < LONE_REPEATS or said.count(said[-2]) < LOOP_REPEATS:
        return False
    back = said[-2 : -LAST_WORDS - 2 : -1]
    for period in range(1, len(back) // 2):
        # Less the word that was left out.
        least = LONE_REPEATS * period - 1 if period < RUN else max(LOOP_REPEATS * period - 1, LOOP_WORDS)
        length = period
        while length < len(back) and length < least and back[length - period] == back[length]:
            length += 1
        if length >= least:
            return True
    return False


def _runs(text: list[str]) -> set[tuple[str, ...]]:
    """The runs of three words in it."""
    return set(zip(text, text[1:], text[2:], strict=False))


def _shared(one: list[str], other: list[str]) -> int:
    """How many words two texts begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
