"""What `--auto` prints: a line per stage and occasional progress lines on a pipe, one live line on a terminal."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rich.console import Console, Group

from engine.core.events import (
    Check,
    Event,
    Forecast,
    Message,
    PairMade,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    TrainStep,
)
from engine.run.journal import Entry
from engine.run.state import RunState
from tui.commands.printers import LinePrinter, live_line


def pair(number: int) -> PairMade:
    return PairMade(str(number), "?", "draft", "revision")


def step(number: int, total: int = 200) -> TrainStep:
    return TrainStep(number, total, 0.61, 0.2, -0.1, 0.31, 0.75, 5e-5, 1.4, 900.0)


RUN: list[tuple[float, Event]] = [
    (0, RunStarted("run", "0.1.0", 1, "host")),
    (0, StageStarted("toolchain", "Looks for tools.")),
    (1, Check("git", "ok", "2.39", "toolchain")),
    (1, Check("uv", "warning", "missing", "toolchain")),
    (2, StageFinished("toolchain", "done", "all there")),
    (2, StageStarted("preflight", "Rehearses.")),
    (30, Forecast({"pairs": 60.0, "training": 150.0}, {})),
    (40, StageFinished("preflight", "done", "fits")),
    (40, StageStarted("pairs", "Makes pairs.")),
    *((40 + number, pair(number)) for number in range(1, 91)),
    (130, StageFinished("pairs", "done", "90 usable")),
    (130, StageStarted("training", "Trains.")),
    *((130 + number, step(number)) for number in range(1, 201)),
    (340, StageFinished("training", "done", "200 steps")),
    (340, RunFinished(0, "done")),
]


def print_events(events: list[tuple[float, Event]], printer: LinePrinter) -> RunState:
    state = RunState()
    for number, (when, event) in enumerate(events):
        entry = Entry(number, 1_000_000.0 + when, event)
        state = state.apply_entry(entry)
        printer.show(entry, state)
    return state


def test_on_a_pipe_a_stage_is_one_line_with_its_time_and_its_warnings(
    capsys: pytest.CaptureFixture[str],
):
    print_events(RUN, LinePrinter())
    lines = capsys.readouterr().out.splitlines()
    assert "✓  2 toolchain done in 0:02: all there" in lines and "✓  6 preflight done in 0:38: fits" in lines
    assert [line for line in lines if "git" in line] == []
    assert any("! uv" in line for line in lines)


def test_a_long_stage_starts_with_its_forecast_and_ends_with_the_actual_time(
    capsys: pytest.CaptureFixture[str],
):
    print_events(RUN, LinePrinter())
    lines = capsys.readouterr().out.splitlines()
    begins = lines.index("▶  7 pairs: Makes pairs.")
    assert lines[begins + 1] == "    forecast: pairs about 1:00, training about 2:30, together about 3:30"
    assert lines[lines.index("▶  9 training: Trains.") + 1] == "    forecast: training about 2:30"
    ends = lines.index("✓  7 pairs done in 1:30: 90 usable")
    assert lines[ends + 1] == "    pairs took 1:30 of work (forecast 1:00)"
    assert lines[-1] == (
        "whole run in 5:40; pairs took 1:30 of work (forecast 1:00); training took 3:20 of work (forecast 2:30)"
    )


def test_work_of_an_earlier_process_counts(capsys: pytest.CaptureFixture[str]):
    printer = LinePrinter()
    for number, (when, event) in enumerate(RUN[:60]):  # killed at the 51st pair
        printer.remember(Entry(number, 1_000_000.0 + when, event))
    print_events([(500, RunStarted("run", "0.1.0", 2, "host")), (500, StageStarted("pairs")), (520, pair(91))], printer)
    again = [(600.0, Forecast({"pairs": 60.0}, {})), (600.0, RunFinished(0))]
    print_events(again, printer)
    assert capsys.readouterr().out.splitlines()[-1].startswith("whole run in 1:40; pairs took 1:11 of work")


def test_progress_comes_every_ten_seconds_at_most_and_then_only_with_another_tenth(capsys: pytest.CaptureFixture[str]):
    print_events(RUN, LinePrinter())
    shares = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("    training ")]
    assert shares[-1] == "took" and len(shares) == 11
    done = [int(share.removesuffix("%")) for share in shares[:-1]]
    assert all(10 <= later - earlier <= 11 for earlier, later in pairwise(done))


def test_a_stage_of_days_prints_a_line_every_ten_minutes(capsys: pytest.CaptureFixture[str]):
    slow: list[tuple[float, Event]] = [(0, StageStarted("pairs"))]
    slow += [(second, Progress(second // 60, 10_000, "pairs", stage="pairs")) for second in range(1, 3_602, 5)]
    print_events(slow, LinePrinter())
    assert len([line for line in capsys.readouterr().out.splitlines() if "/10000 pairs" in line]) == 7


def test_verbose_prints_every_check(capsys: pytest.CaptureFixture[str]):
    print_events(RUN, LinePrinter(verbose=True))
    lines = capsys.readouterr().out.splitlines()
    assert any("git" in line for line in lines) and "▶  2 toolchain: Looks for tools." in lines


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_line_is_one_line_at_any_width(width: int, capsys: pytest.CaptureFixture[str]):
    state = print_events([*RUN[-203:-2]], LinePrinter())
    capsys.readouterr()
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(Group(live_line(state, 1_000_330.0)))  # as rich.live renders it
    lines = shown.get().splitlines()
    assert len(lines) == 1 and lines[0].startswith("▶  9 training  3:20  ━") and len(lines[0]) <= width


def test_hostile_text_in_a_summary_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]):
    print_events([(0, Message("warning", "\x1b[2Jgone")), (1, StageFinished("pairs", "done", "\x1bc"))], LinePrinter())
    assert "\x1b" not in capsys.readouterr().out
