"""Replies that talk about an answer, a revision or a critique instead of answering.

Each sentence is mapped to a small vocabulary (`meta.toml`): word classes that are typical of talk about answers, plain words,
and one blank for everything else. A linear model over words and bigrams (`meta.json`) scores each sentence. The reply's score
is the soft maximum over sentences, because one such sentence spoils a reply.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import exp, log
from pathlib import Path

from engine.pairs.detectors.candidate import WORD, Candidate, normalized_text

WORDS_FILE = Path(__file__).with_name("meta.toml")
WEIGHTS_FILE = Path(__file__).with_name("meta.json")

MAX_CHARACTERS = 6_000
"""How much of a reply is read. Such talk starts early, and a hostile text must not cost more than a long one does."""
MAX_WORDS = 60
"""How much of a sentence is read."""

SHARPNESS = 3.0
"""The sharpness of the soft maximum. At 1, thirty harmless sentences would be three times as suspicious as ten."""

BLANK = "_"
USED_BY_USER = "<theirs>"
"""A class word that the user also used, or any class word if the user asks to edit a text. It is no evidence."""

_SENTENCE_END = re.compile("(?<=[.?!:])[\\s”\"’')\\]]+|\n+")
_QUOTED = re.compile(r"[\"“](?:not\s+|more\s+|very\s+|too\s+)?(\w+)")

_ANNOUNCED = re.compile(
    r"\bhere(?:'s| is)\b(?:\W+\w+){0,5}?\W+(?:answer|response|reply|version|revision|rewrite|message)\b[^.?!\n]{0,60}:"
)
"""Matches "Here is a revised answer, with everything corrected: …". People do not announce their answers."""

Term = str | tuple[str, str]


@dataclass(frozen=True)
class Lexicon:
    symbols: dict[str, str]
    """Maps a word to its class in angle brackets, or to itself."""
    classed: frozenset[str]
    """Words that belong to a class."""
    decisive: frozenset[str]


@dataclass(frozen=True)
class Weights:
    constant: float
    terms: dict[Term, float]
    threshold: float
    """In log-odds; a reply that scores higher is meta."""


@cache
def lexicon() -> Lexicon:
    data = tomllib.loads(WORDS_FILE.read_text(encoding="utf-8"))
    symbols = {word: word for word in data["plain"].split()}
    classed = {word: f"<{name}>" for name, members in data["classes"].items() for word in members.split()}
    return Lexicon(symbols | classed, frozenset(classed), frozenset(f"<{name}>" for name in data["decisive"]))


@cache
def shipped_weights() -> Weights:
    data = json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))
    terms: dict[Term, float] = {}
    for term, weight in data["terms"].items():
        first, _, second = term.partition(" ")
        terms[(first, second) if second else first] = weight
    return Weights(data["constant"], terms, data["threshold"])


def is_meta(candidate: Candidate) -> bool:
    if not candidate.asks_for_edit and _ANNOUNCED.search(normalized_text(candidate.reply[:MAX_CHARACTERS])):
        return True
    sentences = terms_of(candidate)
    if any(not lexicon().decisive.isdisjoint(terms) for terms in sentences):
        return True
    weights = shipped_weights()
    return score(sentences, weights) > weights.threshold


def score(sentences: list[set[Term]], weights: Weights) -> float:
    """The soft maximum over sentences, in log-odds; minus infinity for a reply without words."""
    weight_of = weights.terms
    sums = [sum([weight_of[term] for term in terms if term in weight_of]) for terms in sentences]
    if not sums:
        return float("-inf")
    highest = max(sums)
    return weights.constant + highest + log(sum([exp(SHARPNESS * (value - highest)) for value in sums])) / SHARPNESS


def terms_of(candidate: Candidate) -> list[set[Term]]:
    """The features of each sentence of the reply.

    "<which>", ("<which>", "<answer>")   a word, and a bigram
    "^<which>", "~<praise>"              the reply's first word, and the same in lower case
    ("^the", "<which>")                  the reply's first bigram
    "quoted:<praise>", "?", ":", "first", "lower", "short"
    """
    words = lexicon()
    symbols = words.symbols
    used_by_user = words.classed if candidate.asks_for_edit else words.classed.intersection(candidate.prompt_words)
    if used_by_user:
        symbols = {**symbols, **dict.fromkeys(used_by_user, USED_BY_USER)}
    text = candidate.reply[:MAX_CHARACTERS].strip()
    by_sentence: list[set[Term]] = []
    for sentence in _SENTENCE_END.split(normalized_text(text)):
        line = [symbols.get(word, BLANK) for word in WORD.findall(sentence)[:MAX_WORDS]]
        if not line:
            continue
        terms: set[Term] = set(line)
        terms.update(pairwise(line))
        if not by_sentence:
            lower = text.lstrip("“\"'(*")[:1].islower()
            start = ("~" if lower else "^") + line[0]
            terms |= {"first", start}
            if len(line) > 1:
                terms.add((start, line[1]))
            if lower:
                terms.add("lower")
        if len(line) <= 3:
            terms.add("short")
        if sentence[-1] in "?:":
            terms.add(sentence[-1])
        if '"' in sentence or "“" in sentence:
            terms.update([f"quoted:{symbols.get(word, BLANK)}" for word in _QUOTED.findall(sentence)])
        terms.discard(BLANK)
        terms.discard((BLANK, BLANK))
        by_sentence.append(terms)
    return by_sentence
