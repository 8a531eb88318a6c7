"""A widget for text whose layout depends on its width."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from textual.content import Content
from textual.geometry import Size
from textual.style import Style
from textual.widget import Widget

from tui.widgets.layout import stack

Draw = Callable[[int], Sequence[Content]]


class TextView(Widget):
    """Shows the lines of `draw(width)`; redraws if their inputs or the width change."""

    DEFAULT_CSS = """
    TextView { height: auto; width: 1fr; text-wrap: nowrap; text-overflow: clip; }
    TextView.-empty { display: none; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.auto_links = False  # what can be clicked looks as its colours say, and is not underlined
        self._draw: Draw = lambda width: ()
        self._key: object = object()
        self._drawn: tuple[int, Content, int] | None = None
        self.add_class("-empty")

    def put(self, key: Hashable, draw: Draw | None) -> None:
        """Show `draw(width)`. `key` is everything it depends on: the same key again costs nothing. None shows nothing."""
        if key == self._key:
            return
        before = self._height_now()
        self._key = key
        self._draw = draw or (lambda width: ())
        self._drawn = None
        self.set_class(draw is None, "-empty")
        self.refresh(layout=self._height_now() != before)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self._lines(width)[1]

    def render(self) -> Content:
        return self._lines(self.content_size.width)[0]

    def _height_now(self) -> int:
        width = self.content_size.width
        return self._lines(width)[1] if width else -1

    def _lines(self, width: int) -> tuple[Content, int]:
        if self._drawn is None or self._drawn[0] != width:
            lines = self._draw(width) if width > 0 else ()
            self._drawn = (width, stack(lines), len(lines))
        return self._drawn[1], self._drawn[2]


def clickable(content: Content, action: str) -> Content:
    """Our own text with a click action. Never pass untrusted text: it must not be parsed for actions."""
    return content.stylize(Style.from_meta({"@click": action}))
