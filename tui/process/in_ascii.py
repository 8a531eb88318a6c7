"""Text in ASCII, cell for cell: for terminals, files and pipes that support nothing else."""

from __future__ import annotations

from functools import lru_cache

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
    "▷": ">",
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
"""The character for a chart's cell, by how many of its eight dots are set."""


@lru_cache(4096)
def in_ascii(text: str) -> str:
    """The text in ASCII, with the same number of cells."""
    return "".join(map(_to_ascii, text))


def _to_ascii(character: str) -> str:
    if character.isascii():
        return character
    code = ord(character)
    if code in _BRAILLE:
        return _DOTS[(code - _BRAILLE.start).bit_count()]
    if 0x2400 <= code < 0x2420:  # a control character, made visible
        return "?"
    if character in _GLYPHS:
        return _GLYPHS[character]
    from rich.cells import cell_len  # rarely needed, and `--help` must not wait for it

    return "?" * cell_len(character)
