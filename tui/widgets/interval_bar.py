"""A figure with its interval and threshold on a scale. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.dpo.evaluation.key_figures import KeyFigure
from tui.formatting import figure
from tui.widgets.layout import fit

MIN_BAR, MAX_BAR, GAP = 12, 48, 2
TRACK, INTERVAL, VALUE, MARK = "─", "━", "●", "┃"


def interval_bar(one: KeyFigure, width: int) -> Content:
    """A bar of `width` cells: the scale, the interval on it, the value, and the threshold."""
    least, most = scale_of(one)
    cells = [(TRACK, "$rule")] * width
    first, last = _cell(one.low, least, most, width), _cell(one.high, least, most, width)
    cells[first : last + 1] = [(INTERVAL, "$accent")] * (last - first + 1)
    cells[_cell(one.mark, least, most, width)] = (MARK, "$gauge-forecast")
    cells[_cell(one.value, least, most, width)] = (VALUE, "bold $accent")
    return Content.assemble(*cells)


def scale_of(one: KeyFigure) -> tuple[float, float]:
    """The scale: 0 to 1 for a share; for an unbounded figure, a range around its threshold."""
    if one.is_share:
        return 0.0, 1.0
    reach = 1.15 * max(abs(one.low - one.mark), abs(one.high - one.mark), 1e-9)
    return one.mark - reach, one.mark + reach


def interval_lines(figures: Sequence[KeyFigure], width: int) -> list[Content]:
    """A row per figure: name, value, bar and interval, aligned; if there is room, also threshold and counts."""
    columns = [[_name(one), _value(one), _interval(one), _threshold(one)] for one in figures]
    names, values, intervals, marks = (
        max(cell.cell_length for cell in column) for column in zip(*columns, strict=True)
    )
    fixed = names + values + intervals + 3 * GAP
    with_mark = width - fixed - marks - GAP >= MIN_BAR
    room = min(max(width - fixed - (marks + GAP if with_mark else 0), MIN_BAR), MAX_BAR)
    lines = []
    for one, (name, value, interval, mark) in zip(figures, columns, strict=True):
        cells = [fit(name, names), fit(value, values, right=True), interval_bar(one, room), fit(interval, intervals)]
        if with_mark:
            cells.append(fit(mark, marks))
            if fixed + room + marks + 2 * GAP + len(one.counts) <= width:
                cells.append(Content.styled(one.counts, "$muted"))
        lines.append(Content(" " * GAP).join(cells).rstrip().truncate(width, ellipsis=True))
    return lines


def _name(one: KeyFigure) -> Content:
    return Content.styled(one.name, "$foreground")


def _value(one: KeyFigure) -> Content:
    return Content.styled(shown(one, one.value), "bold")


def _threshold(one: KeyFigure) -> Content:
    text = f"{one.mark_name} {shown(one, one.mark)}" if one.is_share else one.mark_name
    return Content.assemble((f"{MARK} ", "$gauge-forecast"), (text, "$muted"))


def _interval(one: KeyFigure) -> Content:
    low = f"{100 * one.low:.0f}" if one.is_share else shown(one, one.low)
    return Content.styled(f"{low} to {shown(one, one.high)}", "$muted")


def shown(one: KeyFigure, value: float) -> str:
    return f"{100 * value:.0f} %" if one.is_share else ("+" if value > 0 else "") + figure(float(value), 2)


def _cell(value: float, least: float, most: float, width: int) -> int:
    share = (value - least) / (most - least) if most > least else 0.5
    return min(max(round(share * (width - 1)), 0), width - 1)
