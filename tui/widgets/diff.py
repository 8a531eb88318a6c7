"""Mark the words that differ between two texts. A pure function."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from textual.content import Content

WORDS_COMPARED = 3_000
"""Longer texts are shown without marks: the time to compare them grows with the square of their length."""


def word_diff(before: str, after: str) -> tuple[Content, Content, float | None]:
    """`before` and `after` with removed and added words marked, and the share in common (None: not compared).

    Pass only text that is safe to show (`engine.security.sanitize.visible`).
    """
    old, new = _words(before), _words(after)
    if len(old) + len(new) > 2 * WORDS_COMPARED:
        return Content.styled(before), Content.styled(after), None
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    left: list[tuple[str, str]] = []
    right: list[tuple[str, str]] = []
    for tag, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        same = tag == "equal"
        left.append(("".join(old[old_from:old_to]), "" if same else "strike $diff-removed"))
        right.append(("".join(new[new_from:new_to]), "" if same else "bold $diff-added"))
    return _marked(left), _marked(right), matcher.ratio()


def _words(text: str) -> list[str]:
    """Words with the blank that follows them; newlines are separate."""
    return re.findall(r"\n|[^\S\n]+|[^\s]+[^\S\n]?", text)


def _marked(pieces: list[tuple[str, str]]) -> Content:
    return Content.assemble(*(piece for piece in pieces if piece[0]))
