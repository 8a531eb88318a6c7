"""A word three rows high, for the verdict of a run."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from tui.widgets.layout import EMPTY, beside, paragraph

GAP = 4
MIN_WIDTH_BESIDE = 36
"""Minimum cells for a sentence beside the word."""

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
"""The letters of the verdicts."""


def big_word(word: str, style: str, *, plain: bool = False) -> list[Content]:
    """Three rows of cells. With `plain` (no block characters), one row of spaced letters; a word with a letter that has no
    drawing is shown as it is.
    """
    letters = word.upper()
    if plain:
        return [Content.styled(" ".join(letters), f"bold {style}")]
    if not letters or not set(letters) <= set(LETTERS):
        return [Content.styled(word, f"bold {style}")]
    return [Content.styled(" ".join(LETTERS[letter][row] for letter in letters), style) for row in range(3)]


def hero(word: Sequence[Content], label: Content, sentence: Content, width: int) -> list[Content]:
    """The word, with a label and a sentence beside it if there is room, else below."""
    word_width = max(row.cell_length for row in word)
    room = width - word_width - GAP
    if room < MIN_WIDTH_BESIDE:
        return [*word, EMPTY, *paragraph(label, width), *paragraph(sentence, width)]
    return beside(word, [*paragraph(label, room), *paragraph(sentence, room)], word_width, GAP)
