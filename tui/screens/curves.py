"""The curves of a training. Pure functions of the steps and of the user's choices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from textual.content import Content

from engine.core.events import EvalDone, TrainStep
from tui.formatting import figure, number
from tui.widgets.chart import BLOCKS, BRAILLE, ChartStyle, HeldOut, Level, Point, Series, moving_average

ZOOMS = (1, 2, 8)
"""The part of the steps that the charts show: all of them, the newest half, or the newest eighth."""
ZOOM_WORDS = {1: "", 2: "the newer half", 8: "the newest eighth"}
MIN_STEPS = 16
"""Minimum points in a zoomed chart."""
SMOOTHED_PART = 20
"""The moving average covers a twentieth of the visible steps."""


class Curve(NamedTuple):
    title: str
    sentence: str
    field: str
    """The field of TrainStep."""
    colour: str
    levels: tuple[Level, ...] = ()
    bounds: tuple[float, float] | None = None
    held_out: str = ""
    """The evaluation's figure for the same measure on held-out pairs; empty if there is none."""
    digits: int = 3


CURVES: dict[str, Curve] = {
    "loss": Curve("Loss", "ln 2 = untrained", "loss", "loss", (Level(math.log(2), "ln 2"),), held_out="loss", digits=4),
    "margin": Curve(
        "Reward margin", "chosen minus rejected", "margin", "margin", (Level(0.0, "0"),), held_out="margin"
    ),
    "accuracy": Curve(
        "Accuracy",
        "pairs with a positive margin",
        "accuracy",
        "margin",
        (Level(0.5, "0.5"),),
        (0.0, 1.0),
        "reward_accuracy",
    ),
    "gradient": Curve("Gradient norm", "before clipping", "grad_norm", "loss"),
}
"""All curves; the last two are shown if there is room."""
LOG_SCALED = "gradient"


@dataclass(frozen=True)
class CurvesView:
    """The user's choices about the charts."""

    zoom: int = ZOOMS[0]
    smooth: bool = True
    log: bool = False
    cursor: int | None = None
    """The step under the cursor."""
    blocks: bool = False

    def next_zoom(self) -> CurvesView:
        return replace(self, zoom=ZOOMS[(ZOOMS.index(self.zoom) + 1) % len(ZOOMS)])

    def shown(self, steps: Sequence[TrainStep]) -> Sequence[TrainStep]:
        return steps[-max(len(steps) // self.zoom, MIN_STEPS) :]

    def pointed_at(self, x: float | None, steps: Sequence[TrainStep]) -> CurvesView:
        """Put the cursor on the step nearest to an x, or remove it (None)."""
        if x is None or not steps:
            return replace(self, cursor=None)
        nearest = min(self.shown(steps), key=lambda step: abs(step.step - x))
        return replace(self, cursor=nearest.step)

    def moved(self, by: int, steps: Sequence[TrainStep]) -> CurvesView:
        """Move the cursor by some steps; without a cursor, start at the newest step."""
        numbers = [step.step for step in self.shown(steps)]
        if not numbers:
            return self
        at = numbers.index(self.cursor) + by if self.cursor in numbers else len(numbers) - 1 + min(by, 0)
        return replace(self, cursor=numbers[min(max(at, 0), len(numbers) - 1)])


@dataclass(frozen=True)
class DrawnCurve:
    """One chart, ready to be drawn on the screen or in a file."""

    curve: Curve
    titles: tuple[Content, ...]
    """The texts above the chart, the most important first."""
    raw: tuple[Point, ...]
    mean: tuple[Point, ...]
    """The moving average; empty without smoothing."""
    style: ChartStyle

    @property
    def headline(self) -> str:
        """All titles in one line."""
        return "  ".join(title.plain for title in self.titles)

    @property
    def series(self) -> list[Series]:
        colour = f"$chart-{self.curve.colour}"
        if not self.mean:
            return [Series(self.raw, colour, thick=True)]
        return [Series(self.raw, f"{colour}-raw"), Series(self.mean, colour, thick=True)]


def drawn_curve(name: str, steps: Sequence[TrainStep], view: CurvesView, evaluation: EvalDone | None) -> DrawnCurve:
    """The curve `name` over the visible steps."""
    curve, shown = CURVES[name], view.shown(steps)
    log = view.log and name == LOG_SCALED
    values = [(float(step.step), number(getattr(step, curve.field))) for step in shown]
    over = mean_over(len(shown))
    means = moving_average(values, over) if view.smooth else []
    held_out = _held_out(curve, shown, evaluation)
    zoomed = ZOOM_WORDS[view.zoom] if len(shown) < len(steps) else ""
    notes = [zoomed, "log scale" if log else "", curve.sentence]
    style = ChartStyle(
        BLOCKS if view.blocks else BRAILLE,
        log,
        None if view.cursor is None else float(view.cursor),
        tuple(held_out),
    )
    return DrawnCurve(
        curve,
        tuple(_titles(curve, values, means, over, view.cursor, held_out, notes)),
        tuple(_scaled(values, log)),
        tuple(_scaled(means, log)),
        style,
    )


def mean_over(shown: int) -> int:
    return max(shown // SMOOTHED_PART, 1)


def _scaled(points: Sequence[Point], log: bool) -> list[Point]:
    if not log:
        return list(points)
    return [(x, math.log10(y) if y > 0 else math.nan) for x, y in points]


def _held_out(curve: Curve, shown: Sequence[TrainStep], evaluation: EvalDone | None) -> list[HeldOut]:
    """The evaluation's figure with its interval, placed at the last step."""
    if not curve.held_out or evaluation is None or not shown:
        return []
    names = (curve.held_out, f"{curve.held_out}_low", f"{curve.held_out}_high")
    value, low, high = (number(evaluation.figures.get(name)) for name in names)
    if not math.isfinite(value):
        return []
    ends = (low if math.isfinite(low) else value, high if math.isfinite(high) else value)
    return [HeldOut(float(shown[-1].step), value, *ends)]


def _titles(
    curve: Curve,
    values: Sequence[Point],
    means: Sequence[Point],
    over: int,
    cursor: int | None,
    held_out: Sequence[HeldOut],
    notes: Sequence[str],
) -> Iterator[Content]:
    """The curve's name and its figure at one step: the one under the cursor, else the newest, as in the strip above."""
    at = float(cursor) if cursor is not None and any(x == cursor for x, _ in values) else values[-1][0] if values else 0
    value = next((y for x, y in values if x == at), math.nan)
    mean = next((y for x, y in means if x == at), None)
    yield Content.assemble((f"{curve.title}  ", "bold $heading"), (figure(value, curve.digits), "bold"))
    if cursor is not None:
        yield Content.styled(f"at step {at:,.0f}", "bold $key")
    if mean is not None and over > 1:
        yield Content.styled(f"mean of {over} {figure(mean, curve.digits)}", f"$chart-{curve.colour}")
    for one in held_out:
        yield Content(f"◆ held out {figure(one.y)}")
        if one.low < one.high:
            yield Content(f"({figure(one.low)} to {figure(one.high)})")
    yield from (Content.styled(f" {note}", "$muted") for note in notes if note)
