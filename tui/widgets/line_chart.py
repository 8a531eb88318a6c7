"""The chart of `tui.widgets.chart` as a widget, with a title and a cursor for keys and the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from tui.keys import bindings
from tui.widgets.chart import ChartStyle, Level, Plot, Series, chart, plot_of
from tui.widgets.layout import fit, join_fitting, stack


class LineChart(Widget, can_focus=True):
    BINDINGS: ClassVar[list[BindingType]] = bindings("chart")
    PLACE = "chart"

    DEFAULT_CSS = """
    LineChart { height: 1fr; min-height: 5; width: 1fr; text-wrap: nowrap; }
    LineChart:focus { background-tint: $foreground 4%; }
    """

    class Pointed(Message):
        """The mouse is over an x, or has left the chart (None)."""

        def __init__(self, x: float | None) -> None:
            super().__init__()
            self.x = x

    class Stepped(Message):
        """A key moves the cursor by some points, or to an end with a large number."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._key: object = None
        self._titles: Sequence[Content] = ()
        self._series: Sequence[Series] = ()
        self._levels: Sequence[Level] = ()
        self._bounds: tuple[float, float] | None = None
        self._chart_style = ChartStyle()

    def update(
        self,
        key: object,
        titles: Sequence[Content],
        series: Sequence[Series],
        levels: Sequence[Level] = (),
        bounds: tuple[float, float] | None = None,
        style: ChartStyle | None = None,
    ) -> None:
        """Show these curves. `key` stands for all inputs: with the same key as before, nothing is done.

        titles   the texts above the points, the most important first, as many as fit
        """
        if key != self._key:
            self._key, self._titles, self._series, self._levels, self._bounds = key, titles, series, levels, bounds
            self._chart_style = style or ChartStyle()
            self.refresh()

    def render(self) -> Content:
        width, height = self.content_size
        title = fit(join_fitting(self._titles, width), max(width, 1))
        if width < 16 or height < 4:
            return title
        drawn = chart(self._series, self._levels, width, height - 1, self._bounds, self._chart_style)
        return stack([title, *drawn])

    @property
    def plot(self) -> Plot | None:
        """The current layout of the chart."""
        return plot_of(self._series, self._levels, self.content_size.width, self._bounds, self._chart_style)

    # -- the cursor: the page moves it in all charts at once ----------------------------------------------------------

    def action_point(self, by: int) -> None:
        self.post_message(self.Stepped(by))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        plot = self.plot
        if plot is not None:
            self.post_message(self.Pointed(plot.x_at(event.x)))

    def on_click(self, event: events.Click) -> None:
        """Works in terminals that report clicks but no movement."""
        plot = self.plot
        if plot is not None:
            self.post_message(self.Pointed(plot.x_at(event.x)))

    def on_leave(self) -> None:
        self.post_message(self.Pointed(None))
