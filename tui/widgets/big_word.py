"""A word three rows high, for the one result that a whole run is about."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from tui.widgets.layout import EMPTY, beside, paragraph

GAP = 4
LEAST_BESIDE = 36
"""Cells that a sentence needs to stand beside the word."""

LETTERS: dict[str, tuple[str, str, str]] = {
    " ": ("  ", "  ", "  "),
    "A": ("▄▀▄", "█▀█", "▀ ▀"),
    "B": ("█▀▄", "█▀▄", "▀▀ "),
    "C": ("█▀▀", "█  ", "▀▀▀"),
    "D": ("█▀▄", "█ █", "▀▀ "),
    "E": ("█▀▀", "█▀ ", "▀▀▀"),
    "F": ("█▀▀", "█▀ ", "▀  "),
    "I": ("█", "█", "▀"),
    "L": ("█  ", "█  ", "▀▀▀"),
    "N": ("█▄ █", "█ ▀█", "▀  ▀"),
    "O": ("█▀█", "█ █", "▀▀▀"),
    "R": ("█▀▄", "█▀▄", "▀ ▀"),
    "S": ("█▀▀", "▀▀█", "▀▀▀"),
    "T": ("▀█▀", " █ ", " ▀ "),
    "W": ("█   █", "█ █ █", " ▀ ▀ "),
}
"""Those of the verdicts."""


def big_word(word: str, style: str, *, plain: bool = False) -> list[Content]:
    """Three rows of cells; letters with air between them, in one row, where a terminal has no blocks (`plain`); the word itself
    where a letter of it is not drawn here.
    """
    letters = word.upper()
    if plain:
        return [Content.styled(" ".join(letters), f"bold {style}")]
    if not letters or not set(letters) <= set(LETTERS):
        return [Content.styled(word, f"bold {style}")]
    return [Content.styled(" ".join(LETTERS[letter][row] for letter in letters), style) for row in range(3)]


def hero(word: Sequence[Content], label: Content, sentence: Content, width: int) -> list[Content]:
    """The word, with a label and a sentence beside it where there is room, else under it."""
    word_width = max(row.cell_length for row in word)
    room = width - word_width - GAP
    if room < LEAST_BESIDE:
        return [*word, EMPTY, *paragraph(label, width), *paragraph(sentence, width)]
    return beside(word, [*paragraph(label, room), *paragraph(sentence, room)], word_width, GAP)
