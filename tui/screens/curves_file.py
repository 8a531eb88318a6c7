"""Export the charts: all figures as a table (CSV), and a picture (SVG)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from engine.core.events import EvalDone, TrainStep
from engine.core.layout import CURVES_CSV, CURVES_SVG
from engine.storage.files import write_atomically
from tui.formatting import figure, number
from tui.screens.curves import CURVES, CurvesView, DrawnCurve, drawn_curve, mean_over
from tui.widgets.chart import moving_average, window_of

WIDTH, HEIGHT, EDGE = 480.0, 280.0, 46.0
"""Size of one chart and of the margin for its labels, in pixels."""
COLOURS = {"loss": "#3366cc", "margin": "#2e8540"}


def write_curves(
    folder: Path, steps: Sequence[TrainStep], view: CurvesView, evaluation: EvalDone | None
) -> tuple[Path, Path]:
    """Write what the screen shows to both files; returns their paths. Raises OSError."""
    table, picture = folder / CURVES_CSV, folder / CURVES_SVG
    write_atomically(table, curves_csv(view.shown(steps)).encode())
    write_atomically(picture, curves_svg(steps, view, evaluation).encode())
    return table, picture


def curves_csv(steps: Sequence[TrainStep]) -> str:
    """One row per step: each curve's figure, and the same moving average as on the screen."""
    over = mean_over(len(steps))
    columns: dict[str, list[str]] = {"step": [str(step.step) for step in steps]}
    for curve in CURVES.values():
        points = [(float(step.step), number(getattr(step, curve.field))) for step in steps]
        means = dict(moving_average(points, over))
        columns[curve.field] = [repr(y) for _, y in points]
        columns[f"{curve.field}_mean_of_{over}"] = [repr(means[x]) if x in means else "" for x, _ in points]
    columns["learning_rate"] = [repr(number(step.learning_rate)) for step in steps]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def curves_svg(steps: Sequence[TrainStep], view: CurvesView, evaluation: EvalDone | None) -> str:
    """All four charts, in two columns."""
    pieces = []
    for place, name in enumerate(CURVES):
        x, y = place % 2 * (WIDTH + 20) + 10, place // 2 * (HEIGHT + 20) + 10
        drawn = drawn_curve(name, steps, view, evaluation)
        pieces.append(f'<g transform="translate({x:.0f} {y:.0f})">{_panel(drawn)}</g>')
    size = f'width="{2 * WIDTH + 40:.0f}" height="{2 * HEIGHT + 40:.0f}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(pieces)}</svg>\n'


def _panel(drawn: DrawnCurve) -> str:
    title = f'<text x="{EDGE}" y="14" font-size="13">{escape(drawn.headline)}</text>'
    curve, style = drawn.curve, drawn.style
    levels = () if style.log else curve.levels
    window = window_of(drawn.series, levels, curve.bounds, style.held_out)
    if window is None:
        return title

    def x_of(x: float) -> float:
        return EDGE + (x - window.left) / (window.right - window.left) * (WIDTH - EDGE)

    def y_of(y: float) -> float:
        return HEIGHT - 20 - (y - window.bottom) / (window.top - window.bottom) * (HEIGHT - 46)

    frame = f'<path d="M{EDGE} 26V{HEIGHT - 20}H{WIDTH}" fill="none" stroke="#999"/>'
    ticks = "".join(
        f'<text x="{EDGE - 4}" y="{y_of(value) + 4:.1f}" text-anchor="end">{figure(10.0**value if style.log else value)}</text>'
        for value in (window.bottom, window.top)
    )
    ticks += f'<text x="{EDGE}" y="{HEIGHT - 4}">{window.left:,.0f}</text>'
    ticks += f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step {window.right:,.0f}</text>'
    lines = "".join(
        f'<path d="M{EDGE} {y_of(level.value):.1f}H{WIDTH}" stroke="#999" stroke-dasharray="4"/>' for level in levels
    )
    colour = COLOURS[curve.colour]
    for points, opacity in ((drawn.raw, 0.35 if drawn.mean else 1.0), (drawn.mean, 1.0)):
        path = _path([(x_of(x), y_of(y)) for x, y in points])
        lines += (
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="{opacity}"/>' if path else ""
        )
    for one in style.held_out:
        lines += (
            f'<path d="M{x_of(one.x):.1f} {y_of(one.low):.1f}V{y_of(one.high):.1f}" stroke="#222" stroke-width="2"/>'
        )
        lines += f'<circle cx="{x_of(one.x):.1f}" cy="{y_of(one.y):.1f}" r="4"/>'
    return title + frame + ticks + lines


def _path(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through the points, interrupted where a value is not finite."""
    path, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            path.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(path)
