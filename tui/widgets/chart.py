"""A line chart in braille (two by four dots per cell) or, for fonts without braille, in half blocks (one by two). Pure
functions from numbers to rows of text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content

from tui.formatting import figure

Point = tuple[float, float]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of the dot in row y (downwards) and column x of a cell."""
BLANK = 0x2800


@dataclass(frozen=True)
class Raster:
    """How dots become characters."""

    across: int
    """Dots per cell, horizontally."""
    down: int
    """Dots per cell, vertically."""
    bit: Callable[[int, int], int]
    """The bit of the dot in row y and column x of a cell."""
    glyph: Callable[[int], str]
    """The character for a set of bits."""


BRAILLE = Raster(2, 4, lambda y, x: DOTS[y][x], lambda bits: chr(BLANK + bits))
BLOCKS = Raster(1, 2, lambda y, x: 1 << y, lambda bits: " ▀▄█"[bits])
"""Every console font has these characters, since code page 437."""


@dataclass(frozen=True)
class Series:
    points: Sequence[Point]
    style: str
    thick: bool = False
    """Draw the line two dots high."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at a reference value."""

    value: float
    label: str
    style: str = "$chart-mark"


@dataclass(frozen=True)
class HeldOut:
    """A figure measured on held-out pairs at a step, with its interval."""

    x: float
    y: float
    low: float
    high: float
    style: str = "bold $foreground"


@dataclass(frozen=True)
class ChartStyle:
    """How a chart is drawn."""

    raster: Raster = BRAILLE
    log: bool = False
    """Whether the values are logarithms to base ten; the axis shows the original values."""
    cursor: float | None = None
    """The x of a vertical line."""
    held_out: Sequence[HeldOut] = ()


@dataclass(frozen=True)
class Plot:
    """The layout of a chart of some width."""

    window: Window
    gutter: int
    """Cells for the labels on the left, without the axis."""
    across: int
    """Cells for the points."""

    def column_of(self, x: float) -> int:
        """The cell of an x, counted from the left edge of the points."""
        return _scaled(x, self.window.left, self.window.right, self.across - 1)

    def x_at(self, column: int) -> float:
        """The x at a cell of the widget."""
        share = (column - self.gutter - 1) / max(self.across - 1, 1)
        return self.window.left + min(max(share, 0.0), 1.0) * (self.window.right - self.window.left)


@dataclass(frozen=True)
class Window:
    """The part of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float


def braille(points: Sequence[Point], width: int, height: int, window: Window) -> list[str]:
    """`height` rows of `width` cells with a line through `points`, in order of x; NaN and infinities leave a gap."""
    cells = _cells(Series(points, ""), width, height, window, BRAILLE)
    return ["".join(map(BRAILLE.glyph, row)) for row in cells]


def window_of(
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    bounds: tuple[float, float] | None = None,
    held_out: Sequence[HeldOut] = (),
) -> Window | None:
    """The range of all finite points and levels, with a small margin; None if there is nothing to show.

    bounds   the possible range of the values, which is then shown without a margin
    """
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return None
    heights = [y for _, y in finite] + [level.value for level in levels]
    heights += [end for one in held_out for end in (one.low, one.high) if math.isfinite(end)]
    bottom, top = min(heights), max(heights)
    margin = 0.05 * (top - bottom) or abs(top) * 0.1 or 1.0
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    if bounds is not None:
        (bottom, top), margin = bounds, 0.0
    below = min(margin, bottom) if bottom >= 0 else margin  # the axis is not negative if no value is
    return Window(left, right if right > left else left + 1, bottom - below, top + margin)


def plot_of(
    series: Sequence[Series],
    levels: Sequence[Level],
    width: int,
    bounds: tuple[float, float] | None = None,
    style: ChartStyle | None = None,
) -> Plot | None:
    """The layout of the chart in `width` cells; None if there is nothing to show."""
    style = style or ChartStyle()
    window = window_of(series, levels, bounds, style.held_out)
    if window is None:
        return None
    ticks = (_tick(window.top, style.log), _tick(window.bottom, style.log))
    gutter = max(*map(len, ticks), *(len(level.label) for level in levels), 5) + 1
    return Plot(window, gutter, max(width - gutter - 1, 4))


def chart(
    series: Sequence[Series],
    levels: Sequence[Level],
    width: int,
    height: int,
    bounds: tuple[float, float] | None = None,
    style: ChartStyle | None = None,
) -> list[Content]:
    """A chart with its axes: labels on the left, the range of x below. The last series is drawn on top."""
    style = style or ChartStyle()
    plot = plot_of(series, levels, width, bounds, style)
    if plot is None or height < 3:
        return [Content.styled("No points yet.", "$muted")]
    window, gutter, across, down = plot.window, plot.gutter, plot.across, height - 1
    layers = [(_cells(one, across, down, window, style.raster), one.style) for one in series]
    over = _overlay(plot, down, style)
    level_rows = {_row_of(level.value, down, window): level for level in levels}
    rows = []
    for y in range(down):
        level = level_rows.get(y)
        ends = {0: window.top, down - 1: window.bottom}
        label = level.label if level else _tick(ends[y], style.log) if y in ends else ""
        axis = Content.styled(f"{label:>{gutter}}", level.style if level else "$chart-axis")
        line = _row(layers, y, across, level, over.get(y, {}), style.raster)
        rows.append(axis + Content.styled("┤" if label else "│", "$chart-axis") + line)
    first, last = f"{window.left:,.0f}", f"{window.right:,.0f}"
    under = " " * (gutter + 1) + first + " " * max(across - len(first) - len(last), 1) + last
    return [*rows, Content.styled(under[: gutter + 1 + across], "$chart-axis")]


Overlay = dict[int, dict[int, tuple[str, str, bool]]]
"""By row and column: a character, its style, and whether it covers the points."""


def _overlay(plot: Plot, down: int, style: ChartStyle) -> Overlay:
    """The cursor's line, below the points, and the held-out figures with their intervals, above them."""
    over: Overlay = {y: {} for y in range(down)}
    if style.cursor is not None:
        for y in range(down):
            over[y][plot.column_of(style.cursor)] = ("│", "$key", False)
    for one in style.held_out:
        rows = [_row_of(value, down, plot.window) for value in (one.high, one.y, one.low)]
        for y in range(rows[0], rows[2] + 1):
            over[y][plot.column_of(one.x)] = ("◆" if y == rows[1] else "┃", one.style, True)
    return over


def moving_average(points: Sequence[Point], over: int) -> list[Point]:
    """The moving average over up to `over` values; non-finite values are left out."""
    recent: deque[float] = deque()
    total = 0.0
    smooth = []
    for x, y in points:
        if not math.isfinite(y):
            continue
        recent.append(y)
        total += y
        if len(recent) > over:
            total -= recent.popleft()
        smooth.append((x, total / len(recent)))
    return smooth


def _row(
    layers: Sequence[tuple[list[list[int]], str]],
    y: int,
    width: int,
    level: Level | None,
    over: dict[int, tuple[str, str, bool]],
    raster: Raster,
) -> Content:
    pieces: list[tuple[str, str]] = []
    for x in range(width):
        bits, style = 0, ""
        for cells, layer_style in layers:
            if cells[y][x]:
                bits, style = cells[y][x], layer_style
        above = over.get(x)
        if above is not None and (above[2] or not bits):
            pieces.append((above[0], above[1]))
        elif not bits and level is not None:
            pieces.append(("╌", level.style))
        else:
            pieces.append((raster.glyph(bits), style))
    return Content.assemble(*_joined(pieces))


def _joined(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merge neighbours with the same style: fewer escape sequences over a slow connection."""
    joined: list[tuple[str, str]] = []
    for text, style in pieces:
        if joined and joined[-1][1] == style:
            joined[-1] = (joined[-1][0] + text, style)
        else:
            joined.append((text, style))
    return joined


def _cells(series: Series, width: int, height: int, window: Window, raster: Raster) -> list[list[int]]:
    cells = [[0] * width for _ in range(height)]
    across, down, bit = raster.across, raster.down, raster.bit
    before: tuple[int, int] | None = None
    for x, y in series.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            before = None
            continue
        column = _scaled(x, window.left, window.right, across * width - 1)
        row = down * height - 1 - _scaled(y, window.bottom, window.top, down * height - 1)
        for dot_x, dot_y in _between(before or (column, row), (column, row)):
            cells[dot_y // down][dot_x // across] |= bit(dot_y % down, dot_x % across)
            if series.thick and dot_y and down > 2:  # half blocks are thick already
                cells[(dot_y - 1) // down][dot_x // across] |= bit((dot_y - 1) % down, dot_x % across)
        before = (column, row)
    return cells


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line, both ends included."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * step / steps), round(start[1] + (end[1] - start[1]) * step / steps))
        for step in range(steps + 1)
    ]


def _scaled(value: float, low: float, high: float, most: int) -> int:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(min(max(share, 0.0), 1.0) * most)


def _row_of(value: float, height: int, window: Window) -> int:
    return (4 * height - 1 - _scaled(value, window.bottom, window.top, 4 * height - 1)) // 4


def _tick(value: float, log: bool = False) -> str:
    value = 10.0**value if log else float(value)
    return figure(value, 2 if abs(value) >= 10 else 3)
