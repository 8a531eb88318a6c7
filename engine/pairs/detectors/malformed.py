"""Malformed replies: empty, without words, a fragment, cut off, or with scaffolding left in."""

from __future__ import annotations

import re

from engine.pairs.detectors.candidate import Candidate

CUT_OFF_WORDS = 20
"""The fewest words of a reply that counts as broken off. A shorter one may be a heading or a name."""

_LETTER_OR_PICTURE = re.compile("[^\\W_]|[\U0001f300-\U0001faff\u2600-\u27bf]")
_MID_SENTENCE_START = re.compile(
    r"\W*(?:and|but|or|because|which|should|would|to|says|is|are|was|were)\b(?![^.]*\?)", re.IGNORECASE
)
_UNFINISHED_END = re.compile(
    r"(?:\b(?:the|an?|and|or|but|of|your|my|our|their|its|if|because|with|from|as|into|than|who|whose)|[a-z],)\Z"
)

_ROLE = r"(?:human|user|assistant|ai|system)"
_STEP = r"(?:(?:critique|revision)(?:\s?request)?|(?:revised|original)\s+(?:answer|response|reply|draft))"
_TURN = re.compile(
    rf"\A[\s\"“#*>(\[]{{0,8}}(?:{_ROLE}|{_STEP})[\s*\])]{{0,6}}:"  # the reply starts with a speaker label
    rf"|\n[ \t\"“#*>]{{0,8}}(?:human|assistant|{_STEP})[ \t*]{{0,4}}:"
    rf"|\n\s*\n[#*> ]{{0,6}}{_ROLE}[ \t*]{{0,4}}:"
    rf"|(?-i:[.?!”\")]\s{{1,3}}(?:Human|Assistant|CritiqueRequest|RevisionRequest):)",
    re.IGNORECASE,
)
_DIALOGUE_REQUEST = re.compile(
    r"\b(?:dialog(?:ue)?s?|conversation|script|screenplay|interview|transcript|skit|role-?play)\b", re.IGNORECASE
)
"""Matches prompts that ask for a dialogue."""
_TOKEN = re.compile(
    r"<(?:start_of_turn|end_of_turn|bos|eos|pad|unk|\|[a-z_]{1,30}\|)>|\[/?(?:INST|SYS)\]|<</?SYS>>|</s>\s*\Z"
    r"|</?(?:critique|revision|revised_?(?:answer|response)|scratchpad|think|thinking|reasoning|final_?answer)>"
    r"|^###\s*(?:Instruction|Response|Input)\s*:",
    re.IGNORECASE | re.MULTILINE,
)


def is_empty(candidate: Candidate) -> bool:
    return not candidate.reply or candidate.reply.isspace()


def is_fragment(candidate: Candidate) -> bool:
    """Has no words at all, or starts in the middle of a sentence."""
    if _LETTER_OR_PICTURE.search(candidate.reply) is None:
        return True
    return candidate.reply.lstrip()[:1].islower() and _MID_SENTENCE_START.match(candidate.reply) is not None


def is_cut_off(candidate: Candidate) -> bool:
    """Cut off at the token limit; or, if that is not recorded, a longer reply that ends with "and the" or inside code."""
    if not candidate.finished:
        return not is_empty(candidate)
    end = candidate.reply.rstrip()
    if len(candidate.reply_words) >= CUT_OFF_WORDS and _UNFINISHED_END.search(end, max(len(end) - 12, 0)) is not None:
        return True
    return "```" in end and end.count("\n```") + end.startswith("```") == 1


def is_leak(candidate: Candidate) -> bool:
    """Contains scaffolding or simulated turns: `Human:`, `Critique:`, control tokens."""
    reply = candidate.reply
    if ":" in reply and _TURN.search(reply) is not None and _DIALOGUE_REQUEST.search(candidate.prompt) is None:
        return True
    if "<" not in reply and "[" not in reply and "#" not in reply:
        return False
    return any(
        match[0] not in candidate.prompt
        and reply[max(match.start() - 1, 0) : match.start()] != "`"  # else only mentioned
        for match in _TOKEN.finditer(reply)
    )
