"""ASCII replacements for terminals without Unicode, for the screens' own characters and for untrusted text.

One filter over the output, so that no widget needs to know about it.
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
