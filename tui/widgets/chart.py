"""A line chart in braille: two by four dots a cell. Pure functions from numbers to rows of text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from tui.formatting import figure

Point = tuple[float, float]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of the dot in row y (downwards) and column x of a cell."""
BLANK = 0x2800


@dataclass(frozen=True)
class Series:
    points: Sequence[Point]
    style: str
    thick: bool = False
    """Two dots high."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value that means something."""

    value: float
    label: str
    style: str = "$chart-mark"


@dataclass(frozen=True)
class Window:
    """The part of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float


def braille(points: Sequence[Point], width: int, height: int, window: Window) -> list[str]:
    """`height` rows of `width` cells with a line through `points` in order of x; NaN and infinities leave a gap."""
    return ["".join(chr(BLANK + bits) for bits in row) for row in _cells(Series(points, ""), width, height, window)]


def window_of(
    series: Sequence[Series], levels: Sequence[Level] = (), bounds: tuple[float, float] | None = None
) -> Window | None:
    """All finite points and levels, with a little air above and below; None if there is nothing to show.

    bounds   what the values can be at most: then these are shown, without air
    """
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return None
    heights = [y for _, y in finite] + [level.value for level in levels]
    bottom, top = min(heights), max(heights)
    air = 0.05 * (top - bottom) or abs(top) * 0.1 or 1.0
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    if bounds is not None:
        (bottom, top), air = bounds, 0.0
    below = min(air, bottom) if bottom >= 0 else air  # what is never negative gets no axis that is
    return Window(left, right if right > left else left + 1, bottom - below, top + air)


def chart(
    series: Sequence[Series],
    levels: Sequence[Level],
    width: int,
    height: int,
    bounds: tuple[float, float] | None = None,
) -> list[Content]:
    """A chart with its axes: labels at the left, the range of x under it. The last series lies on top."""
    window = window_of(series, levels, bounds)
    if window is None or height < 3:
        return [Content.styled("No points yet.", "$muted")]
    gutter = max(len(_tick(window.top)), len(_tick(window.bottom)), *(len(level.label) for level in levels), 5) + 1
    across, down = max(width - gutter - 1, 4), height - 1
    layers = [(_cells(one, across, down, window), one.style) for one in series]
    level_rows = {_row_of(level.value, down, window): level for level in levels}
    rows = []
    for y in range(down):
        level = level_rows.get(y)
        label = level.label if level else _tick(window.top) if y == 0 else _tick(window.bottom) if y == down - 1 else ""
        axis = Content.styled(f"{label:>{gutter}}", level.style if level else "$chart-axis")
        rows.append(axis + Content.styled("┤" if label else "│", "$chart-axis") + _row(layers, y, across, level))
    first, last = f"{window.left:,.0f}", f"{window.right:,.0f}"
    under = " " * (gutter + 1) + first + " " * max(across - len(first) - len(last), 1) + last
    return [*rows, Content.styled(under[: gutter + 1 + across], "$chart-axis")]


def moving_average(points: Sequence[Point], over: int) -> list[Point]:
    """Each value averaged with those before it, `over` at most; what is not finite is left out."""
    kept: deque[float] = deque()
    total = 0.0
    smooth = []
    for x, y in points:
        if not math.isfinite(y):
            continue
        kept.append(y)
        total += y
        if len(kept) > over:
            total -= kept.popleft()
        smooth.append((x, total / len(kept)))
    return smooth


def _row(layers: Sequence[tuple[list[list[int]], str]], y: int, width: int, level: Level | None) -> Content:
    pieces: list[tuple[str, str]] = []
    for x in range(width):
        bits, style = 0, ""
        for cells, layer_style in layers:
            if cells[y][x]:
                bits, style = cells[y][x], layer_style
        if not bits and level is not None:
            pieces.append(("╌", level.style))
        else:
            pieces.append((chr(BLANK + bits), style))
    return Content.assemble(*_joined(pieces))


def _joined(pieces: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one style as one piece: fewer escape sequences over a slow line."""
    joined: list[tuple[str, str]] = []
    for text, style in pieces:
        if joined and joined[-1][1] == style:
            joined[-1] = (joined[-1][0] + text, style)
        else:
            joined.append((text, style))
    return joined


def _cells(series: Series, width: int, height: int, window: Window) -> list[list[int]]:
    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for x, y in series.points:
        if not (math.isfinite(x) and math.isfinite(y)):
            before = None
            continue
        column = _scaled(x, window.left, window.right, 2 * width - 1)
        row = 4 * height - 1 - _scaled(y, window.bottom, window.top, 4 * height - 1)
        for dot_x, dot_y in _between(before or (column, row), (column, row)):
            cells[dot_y // 4][dot_x // 2] |= DOTS[dot_y % 4][dot_x % 2]
            if series.thick and dot_y:
                cells[(dot_y - 1) // 4][dot_x // 2] |= DOTS[(dot_y - 1) % 4][dot_x % 2]
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


def _tick(value: float) -> str:
    return figure(float(value), 2 if abs(value) >= 10 else 3)
