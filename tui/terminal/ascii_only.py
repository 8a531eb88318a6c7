"""For terminals that have ASCII alone: what the screens draw with, and what foreign text is written in, in its place.

One filter over what is about to be written, so that no widget need know of it.
"""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from tui.process.in_ascii import in_ascii


class AsciiOnly(LineFilter):
    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment if segment.control or segment.text.isascii() else Segment(in_ascii(segment.text), segment.style)
            for segment in segments
        ]
