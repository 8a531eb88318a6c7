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
    """Shows the lines of `draw(width)`, and redraws if their inputs or the width change."""

    DEFAULT_CSS = """
    TextView { height: auto; width: 1fr; text-wrap: nowrap; text-overflow: clip; }
    TextView.-empty { display: none; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.auto_links = False  # clickable words have colours of their own and are not underlined
        self._draw: Draw = lambda width: ()
        self._key: object = object()
        self._drawn: tuple[int, Content, int] | None = None
        self.add_class("-empty")

    def update(self, key: Hashable, draw: Draw | None) -> None:
        """Show `draw(width)`; None shows nothing. `key` stands for all inputs: with the same key as before, nothing is done."""
        if key == self._key:
            return
        old_height = self._height_now()
        self._key = key
        self._draw = draw or (lambda width: ())
        self._drawn = None
        self.set_class(draw is None, "-empty")
        self.refresh(layout=self._height_now() != old_height)

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
    """A text of ours with a click action. Never pass untrusted text: it must not be parsed for actions."""
    return content.stylize(Style.from_meta({"@click": action}))
