"""Replace non-ASCII characters for terminals without Unicode, in the screens' own texts and in untrusted ones.

One filter over the output does it, so that no widget has to.
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
