"""Show the selection in reverse video on terminals with sixteen colours or none: always supported and always readable.

The ANSI themes give the selection a background that nothing else has (`themes.loader.ANSI_SELECTED_BACKGROUND`); this
filter replaces it with reverse video before colours are translated or removed.
"""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

from themes.loader import ANSI_SELECTED_BACKGROUND

_BACKGROUND = RichColor.parse(ANSI_SELECTED_BACKGROUND.removeprefix("ansi_")).number


class ReverseVideo(LineFilter):
    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.style is None or segment.style.bgcolor is None or segment.style.bgcolor.number != _BACKGROUND
            else Segment(segment.text, _reversed(segment.style), segment.control)
            for segment in segments
        ]


@lru_cache(256)
def _reversed(style: Style) -> Style:
    """A style with the same weight and links, in the terminal's two default colours, swapped."""
    plain = Style(
        color="default",
        bgcolor="default",
        bold=style.bold,
        strike=style.strike,
        underline=style.underline,
        reverse=True,
    )
    return plain + Style.from_meta(style.meta) if style.meta else plain
