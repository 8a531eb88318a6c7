"""The braille chart, in cases small enough to check by eye, and other drawn figures."""

from __future__ import annotations

import math

import pytest

from engine.core.events import Forecast, GpuReading, Telemetry
from tui.formatting import duration, figure, memory, rate
from tui.widgets.chart import Level, Series, Window, braille, chart, moving_average, window_of
from tui.widgets.diff import word_diff
from tui.widgets.gauge import bar, forecast_mark, memory_bar, peak_mark, short_memory
from tui.widgets.gpus import gpu_lines

UNIT = Window(0, 1, 0, 1)


def test_one_point_is_one_dot():
    assert braille([(0, 0)], 1, 1, UNIT) == ["⡀"]
    assert braille([(0, 1)], 1, 1, UNIT) == ["⠁"]
    assert braille([(1, 1)], 1, 1, UNIT) == ["⠈"]
    assert braille([(1, 0)], 1, 1, UNIT) == ["⢀"]


def test_a_level_line_fills_one_row_of_dots():
    assert braille([(0, 0), (1, 0)], 3, 1, UNIT) == ["⣀⣀⣀"]
    assert braille([(0, 1), (1, 1)], 3, 1, UNIT) == ["⠉⠉⠉"]


def test_a_rise_goes_from_the_lower_left_to_the_upper_right():
    assert braille([(0, 0), (1, 1)], 2, 1, UNIT) == ["⡠⠊"]


def test_a_line_uses_all_rows():
    assert braille([(0, 0), (0, 1)], 1, 2, UNIT) == ["⡇", "⡇"]


def test_no_points_are_blank():
    assert braille([], 2, 2, UNIT) == ["⠀⠀", "⠀⠀"]


def test_nan_and_infinities_leave_a_gap():
    with_gap = braille([(0, 0), (0.4, math.nan), (0.6, math.inf), (1, 0)], 3, 1, UNIT)
    assert with_gap == ["⡀⠀⢀"]


def test_points_outside_the_window_stay_inside_the_chart():
    assert braille([(0, 9)], 1, 1, UNIT) == ["⠁"]


def test_the_window_holds_all_points_and_levels_with_a_margin():
    window = window_of([Series([(1, 0.5), (9, 0.7)], "")], [Level(math.log(2), "ln 2")])
    assert window is not None
    assert (window.left, window.right) == (1, 9)
    assert window.bottom < 0.5 and window.top > 0.7


def test_values_that_are_never_negative_get_no_negative_axis():
    norms = window_of([Series([(1, 0.01), (2, 2.9)], "")])
    margins = window_of([Series([(1, -0.2), (2, 1.3)], "")])
    assert norms is not None and norms.bottom == 0.0
    assert margins is not None and margins.bottom < -0.2


def test_one_point_and_equal_points_have_a_window_too():
    for points in ([(3, 0.4)], [(1, 0.0), (2, 0.0)]):
        window = window_of([Series(points, "")])
        assert window is not None and window.top > window.bottom and window.right > window.left


def test_points_that_are_all_nan_have_no_window_and_a_note():
    assert window_of([Series([(1, math.nan)], "")]) is None
    assert chart([Series([(1, math.nan)], "")], [], 40, 8)[0].plain == "No points yet."


def test_a_chart_has_the_requested_width_and_height():
    lines = chart([Series([(1, 0.7), (2, 0.6), (3, 0.65)], "")], [Level(math.log(2), "ln 2")], 40, 8)
    assert len(lines) == 8
    assert {line.cell_length for line in lines} == {40}
    assert any("ln 2" in line.plain for line in lines)
    assert lines[-1].plain.split() == ["1", "3"]


def test_a_chart_too_small_to_draw_does_not_fail():
    assert chart([Series([(1, 0.7)], "")], [], 6, 2)


def test_the_moving_average_ignores_nan():
    assert moving_average([(1, 1.0), (2, math.nan), (3, 3.0)], 2) == [(1, 1.0), (3, 2.0)]


def test_a_bar_is_filled_to_an_eighth_of_a_cell():
    assert bar(0.5, 4).plain == "██  "
    assert bar(0.53125, 4).plain == "██▏ "
    assert bar(1.7, 4).plain == "████"
    assert bar(math.nan, 4).plain == "    "
    assert bar(0.25, 4, marks=(peak_mark(1.0),)).plain == "█  ▏"


def test_marks_are_drawn_on_filled_and_empty_cells():
    assert bar(0.75, 4, marks=(forecast_mark(0.5),)).plain == "█┃█ "
    assert bar(0.25, 4, marks=(forecast_mark(0.75), peak_mark(0.5))).plain == "█▏┃ "
    assert bar(0.5, 4, marks=(forecast_mark(7.0), forecast_mark(math.nan))).plain == "██ ┃"


def test_a_peak_below_current_use_is_not_marked_but_a_forecast_always_is():
    assert memory_bar(3, 4, 4, peak=2, forecast=1).plain == "┃██ "


def gpus(on_gpu: bool, gpu: int | None = 0, width: int = 120) -> list[str]:
    reading = Telemetry((GpuReading(0, "T4", 6 << 30, 16 << 30, 91.0, 66.0, 70.0),), 2 << 30, 8 << 30, 64 << 30, 12.0)
    forecast = Forecast({}, {"pairs": 5 << 30, "training": 11 << 30}, on_gpu, gpu)
    lines = gpu_lines(reading, {0: 9 << 30}, forecast, width, peak_of_process=3 << 30)
    return [line.plain for line in lines]


def test_a_gauge_shows_use_peak_forecast_and_the_drivers_figures():
    gpu, mine, host = gpus(on_gpu=True)
    for figure_text in (
        "GPU 0  T4",
        "6.0 GiB of 16.0 GiB",
        "91 %",
        "66 °C",
        "70 W",
        "peak 9.0 GiB",
        "forecast 11.0 GiB",
    ):
        assert figure_text in gpu
    assert gpu.count("┃") == 2 and gpu.count("▏") == 2, "on the bar, and in the legend"
    assert "forecast" not in mine and "2.0 GiB of 64.0 GiB" in mine and "8.0 GiB of 64.0 GiB" in host


def test_in_few_columns_the_marks_are_named_and_the_watts_left_out():
    gpu = gpus(on_gpu=True, width=78)[0]
    assert gpu.endswith(("▏peak 9.0 GiB   ┃forecast 11.0 GiB   91 %", "forecast 11.0 GiB"))
    assert "…" not in gpu and "W" not in gpu


def test_on_the_cpu_the_forecast_is_about_this_run_and_another_gpu_has_none():
    gpu, mine, _ = gpus(on_gpu=False)
    assert "forecast" not in gpu and "forecast 11.0 GiB" in mine
    assert "forecast" not in gpus(on_gpu=True, gpu=1)[0]


@pytest.mark.fault("E1")
def test_without_a_gpu_the_gauge_says_so_and_shows_the_machines_memory():
    reading = Telemetry((), 2 << 30, 8 << 30, 64 << 30, 12.0, "no NVIDIA GPU telemetry: driver not loaded")
    lines = [line.plain for line in gpu_lines(reading, {}, None, 120)]
    assert lines[0] == "No NVIDIA GPU telemetry: driver not loaded"
    assert "All memory" in lines[2] and "8.0 GiB of 64.0 GiB" in lines[2]
    short = short_memory(reading, None, 6).plain
    assert short.startswith("no GPU  RAM ") and short.endswith(" 8/64 GiB")


def test_changed_words_are_marked():
    before, after, common = word_diff("the cat sat", "the dog sat")
    assert (before.plain, after.plain) == ("the cat sat", "the dog sat")
    assert [(before.plain[s.start : s.end], s.style) for s in before.spans] == [("cat ", "strike $diff-removed")]
    assert [(after.plain[s.start : s.end], s.style) for s in after.spans] == [("dog ", "bold $diff-added")]
    assert common is not None and 0 < common < 1


def test_numbers_read_well():
    assert [duration(s) for s in (4, 192, 3720, 183_600)] == ["4s", "3m 12s", "1h 02m", "2d 03h"]
    assert duration(None) == duration(math.inf) == ""
    assert [memory(b) for b in (100, 1 << 20, 80 << 30)] == ["100 B", "1.0 MiB", "80.0 GiB"]
    assert [rate(r, "pairs") for r in (12.5, 1 / 12, 1 / 3600, None)] == [
        "12.5 pairs/s",
        "5.0 pairs/min",
        "1.0 pairs/h",
        "",
    ]
    assert [figure(x, 2) for x in (0.43, 4.2e-4)] == ["0.43", "4e-04"]
    assert [figure(x) for x in (0.693147, 5e-5, 1250, math.nan, "nan")] == ["0.693", "5.0e-05", "1,250", "nan", "nan"]
