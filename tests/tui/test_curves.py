"""The curves of a training: a cursor with values, smoothing, held-out figures, a log scale, what is exported; with keys alone and
the mouse alone.
"""

from __future__ import annotations

import csv
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from engine.core import layout
from engine.core.events import EvalDone, TrainStep
from tests.support.idle_wizard import open_stage, screen_text, turn_to, until
from tui.runs.runner import Runner
from tui.screens.curves import CurvesView, drawn_curve
from tui.screens.curves_file import curves_csv, curves_svg
from tui.screens.training import TrainingView
from tui.terminal import sequences
from tui.widgets.chart import BLOCKS, ChartStyle, HeldOut, Level, Series, chart, plot_of
from tui.widgets.layout import join_fitting
from tui.widgets.line_chart import LineChart
from tui.wizard.app import Wizard


def step(number: int, loss: float, gradient: float = 1.0) -> TrainStep:
    return TrainStep(number, 40, loss, 0.2, -0.1, 0.31, 0.75, 5e-5, gradient, 900.0)


STEPS = [step(n, 0.7 - n / 100, 10.0 ** (-n / 10)) for n in range(1, 41)]
EVALUATION = EvalDone("better", figures={"margin": 0.25, "margin_low": 0.2, "margin_high": 0.4})


# -- titles ------------------------------------------------------------------------------------------------------------


def test_the_headline_has_the_newest_step_and_its_mean():
    title = drawn_curve("loss", STEPS, CurvesView(), None).headline
    assert title.startswith("Loss  0.3000  mean of 2 0.3050")


def test_without_smoothing_there_is_one_line_and_no_mean():
    drawn = drawn_curve("loss", STEPS, CurvesView(smooth=False), None)
    assert "mean" not in drawn.headline and len(drawn.series) == 1


def test_the_headline_has_the_figures_of_the_step_under_the_cursor():
    title = drawn_curve("loss", STEPS, CurvesView(cursor=11), None).headline
    assert title.startswith("Loss  0.5900  at step 11  mean of 2 0.5950")


def test_the_cursor_goes_to_the_nearest_visible_step():
    view = CurvesView().pointed_at(11.4, STEPS)
    assert view.cursor == 11
    assert view.moved(-100, STEPS).cursor == 1 and view.moved(100, STEPS).cursor == 40
    assert CurvesView().moved(-1, STEPS).cursor == 39
    assert CurvesView(zoom=2).pointed_at(1, STEPS).cursor == 21
    assert view.pointed_at(None, STEPS).cursor is None


def test_the_held_out_figure_is_at_the_last_step_with_its_interval():
    drawn = drawn_curve("margin", STEPS, CurvesView(), EVALUATION)
    assert drawn.style.held_out == (HeldOut(40.0, 0.25, 0.2, 0.4),)
    assert "◆ held out 0.250  (0.200 to 0.400)" in drawn.headline
    assert drawn_curve("loss", STEPS, CurvesView(), EVALUATION).style.held_out == (), "it was not measured"
    measured = replace(EVALUATION, figures={"loss": 0.6, "loss_low": 0.55, "loss_high": 0.65})
    assert drawn_curve("loss", STEPS, CurvesView(), measured).style.held_out == (HeldOut(40.0, 0.6, 0.55, 0.65),)


def test_titles_that_do_not_fit_are_left_out_and_never_cut():
    drawn = drawn_curve("margin", STEPS, CurvesView(), EVALUATION)
    assert join_fitting(drawn.titles, 60).plain == "Reward margin  0.310  mean of 2 0.310  ◆ held out 0.250"
    assert join_fitting(drawn.titles, 44).plain == "Reward margin  0.310  mean of 2 0.310"


def test_on_a_log_scale_equal_factors_are_equal_heights_and_zero_has_none():
    drawn = drawn_curve("gradient", [*STEPS, step(41, 0.3, 0.0)], CurvesView(log=True), None)
    heights = [y for _, y in drawn.raw]
    assert heights[10] - heights[0] == pytest.approx(heights[30] - heights[20]) == pytest.approx(-1.0)
    assert math.isnan(heights[-1]) and "log scale" in drawn.headline


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_half_blocks_replace_braille():
    lines = chart([Series([(0, 0), (1, 0)], "")], [], 20, 4, (0, 1), ChartStyle(BLOCKS))
    drawn = "".join(line.plain for line in lines)
    assert "▄" in drawn and not any(0x2800 <= ord(letter) < 0x2900 for letter in drawn)


def test_the_consoles_font_has_no_braille(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "linux")
    assert sequences.lacks_braille()
    monkeypatch.setenv("TERM", "xterm-256color")
    assert not sequences.lacks_braille()


def test_a_held_out_interval_and_the_cursor_are_in_their_columns():
    style = ChartStyle(cursor=0.0, held_out=(HeldOut(10.0, 0.5, 0.25, 0.75),))
    series, levels = [Series([(0, 0.0), (10, 0.0)], "")], [Level(1.0, "1")]
    rows = [line.plain for line in chart(series, levels, 30, 12, (0, 1), style)]
    assert [row[-1] for row in rows if row[-1] in "◆┃"].count("◆") == 1
    assert sum(row[-1] == "┃" for row in rows) >= 3
    plot = plot_of(series, levels, 30, (0, 1), style)
    assert plot is not None and all(row[plot.gutter + 1] == "│" for row in rows[1:-2])


def test_a_cell_stands_for_the_x_that_is_drawn_in_it():
    plot = plot_of([Series([(1, 0.0), (41, 1.0)], "")], [], 60)
    assert plot is not None
    assert [plot.x_at(plot.gutter + 1 + plot.column_of(x)) for x in (1, 41)] == [1.0, 41.0]
    assert plot.x_at(0) == 1.0 and plot.x_at(1_000) == 41.0


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_step_with_every_figure_and_its_mean():
    rows = list(csv.DictReader(curves_csv(STEPS).splitlines()))
    assert len(rows) == 40 and rows[10]["step"] == "11"
    assert float(rows[10]["loss"]) == pytest.approx(0.59) and float(rows[10]["loss_mean_of_2"]) == pytest.approx(0.595)
    assert float(rows[10]["grad_norm"]) == pytest.approx(10**-1.1)


@pytest.mark.parametrize("view", [CurvesView(), CurvesView(log=True, smooth=False, cursor=3)])
def test_the_picture_is_an_svg_with_four_charts(view: CurvesView):
    broken = [*STEPS, replace(STEPS[-1], step=41, loss=math.nan)]
    root = ET.fromstring(curves_svg(broken, view, EVALUATION))
    titles = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("Loss", "Reward margin", "Accuracy", "Gradient norm"):
        assert any(title.startswith(name) for title in titles)
    assert "nan" not in "".join(path.get("d", "") for path in root.iter("{http://www.w3.org/2000/svg}path"))


# -- the screen --------------------------------------------------------------------------------------------------------


def curves(app: Wizard) -> CurvesView:
    assert isinstance(app.main.view, TrainingView)
    return app.main.view.curves


async def test_with_keys_alone(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(160, 48)) as pilot:
        await open_stage(pilot, app, "training")
        await turn_to(pilot, app, "Curves")
        await until(pilot, lambda: isinstance(app.focused, LineChart), "a chart in focus")
        await pilot.press("left", "left")
        await until(pilot, lambda: f"at step {curves(app).cursor}" in screen_text(app), "the figures of the step")
        newest = finished.snapshot().train_steps[-1].step
        assert curves(app).cursor == newest - 2
        await pilot.press("home")
        assert curves(app).cursor == 1
        await pilot.press("m", "g")
        await until(
            pilot, lambda: "log scale" in screen_text(app) and "mean of" not in screen_text(app), "the other view"
        )
        await pilot.press("escape")
        assert curves(app).cursor is None
        await pilot.press("x")
        await until(pilot, lambda: (finished.run.folder / layout.CURVES_SVG).exists(), "the picture")
        rows = (finished.run.folder / layout.CURVES_CSV).read_text().splitlines()
        assert len(rows) == 1 + len(finished.snapshot().train_steps)


async def test_with_the_mouse_alone(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(160, 48)) as pilot:
        await open_stage(pilot, app, "training")
        await turn_to(pilot, app, "Curves")
        chart_on_screen = app.main.query_one("#loss", LineChart)
        await until(pilot, lambda: chart_on_screen.plot is not None, "the chart")
        plot = chart_on_screen.plot
        assert plot is not None
        await pilot.hover("#loss", offset=(plot.gutter + 1, 5))
        await until(pilot, lambda: curves(app).cursor == 1, "the first step")
        await pilot.click("#loss", offset=(plot.gutter + plot.across, 5))
        await until(pilot, lambda: curves(app).cursor == finished.snapshot().train_steps[-1].step, "the last step")
