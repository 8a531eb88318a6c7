"""For terminals that have ASCII alone: what the screens draw with, and what foreign text is written in, in its place.

One filter over what is about to be written, so that no widget need know of it.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_GLYPHS = {
    **dict.fromkeys("─━╌╴╶═", "-"),
    **dict.fromkeys("│┃▏▌▎▍╎║", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+"),
    **dict.fromkeys("█▉▊▋▇▆", "#"),
    **dict.fromkeys("▅▄▃", "="),
    **dict.fromkeys("▂▁▔▀", "_"),
    **dict.fromkeys("·•●", "*"),
    "✓": "+",
    "✗": "x",
    "⊘": "0",
    "▶": ">",
    "↷": "~",
    "■": "#",
    "…": ".",
    "▲": "^",
    "▼": "v",
    "→": ">",
    "←": "<",
    "↑": "^",
    "↓": "v",
    "⇄": "%",
    "✎": "e",
    "±": "~",
    "−": "-",
    "–": "-",
    "—": "-",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "°": "'",
    "\u00a0": " ",
}
_BRAILLE, _DOTS = range(0x2800, 0x2900), " .:;=+*%#"
"""A cell of a chart by how many of its eight dots are set."""


class AsciiOnly(LineFilter):
    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment if segment.control or segment.text.isascii() else Segment(in_ascii(segment.text), segment.style)
            for segment in segments
        ]


@lru_cache(4096)
def in_ascii(text: str) -> str:
    """The text with as many cells, in ASCII."""
    return "".join(map(_letter, text))


def _letter(character: str) -> str:
    if character.isascii():
        return character
    code = ord(character)
    if code in _BRAILLE:
        return _DOTS[(code - _BRAILLE.start).bit_count()]
    if 0x2400 <= code < 0x2420:  # a control character, made visible
        return "?"
    return _GLYPHS.get(character, "?" * cell_len(character))
