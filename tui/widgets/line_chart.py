"""The chart of `tui.widgets.chart` as a widget with a title."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widget import Widget

from tui.widgets.chart import Level, Series, chart
from tui.widgets.layout import fit, stack


class LineChart(Widget):
    DEFAULT_CSS = "LineChart { height: 1fr; min-height: 5; width: 1fr; text-wrap: nowrap; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._key: object = None
        self._title = Content("")
        self._series: Sequence[Series] = ()
        self._levels: Sequence[Level] = ()
        self._bounds: tuple[float, float] | None = None

    def put(
        self,
        key: object,
        title: Content,
        series: Sequence[Series],
        levels: Sequence[Level] = (),
        bounds: tuple[float, float] | None = None,
    ) -> None:
        """Show this. `key` is everything it depends on: the same key again costs nothing."""
        if key != self._key:
            self._key, self._title, self._series, self._levels, self._bounds = key, title, series, levels, bounds
            self.refresh()

    def render(self) -> Content:
        width, height = self.content_size
        if width < 16 or height < 4:
            return fit(self._title, max(width, 1))
        return stack([fit(self._title, width), *chart(self._series, self._levels, width, height - 1, self._bounds)])
