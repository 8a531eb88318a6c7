"""The verdict of a run as a word in large letters, three rows high."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from tui.widgets.layout import EMPTY, paragraph, two_columns

GAP = 4
MIN_WIDTH_BESIDE = 36
"""Minimum cells for the sentence beside the word."""

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
"""The letters that occur in verdicts."""


def big_word(word: str, style: str, *, plain: bool = False) -> list[Content]:
    """The word in three rows. With `plain` (no block characters), in one row of spaced letters; a word with any other letter
    is left as it is.
    """
    letters = word.upper()
    if plain:
        return [Content.styled(" ".join(letters), f"bold {style}")]
    if not letters or not set(letters) <= set(LETTERS):
        return [Content.styled(word, f"bold {style}")]
    return [Content.styled(" ".join(LETTERS[letter][row] for letter in letters), style) for row in range(3)]


def hero(word: Sequence[Content], label: Content, sentence: Content, width: int) -> list[Content]:
    """The large word, with a label and a sentence beside it if there is room, else below."""
    word_width = max(row.cell_length for row in word)
    room = width - word_width - GAP
    if room < MIN_WIDTH_BESIDE:
        return [*word, EMPTY, *paragraph(label, width), *paragraph(sentence, width)]
    return two_columns(word, [*paragraph(label, room), *paragraph(sentence, room)], word_width, GAP)
