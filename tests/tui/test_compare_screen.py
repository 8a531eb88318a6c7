"""Comparing runs on the screen: marked in the list, with keys alone and with the mouse alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.pipeline.compare import compare
from engine.run.listing import find_runs
from tests.pipeline.test_compare import compared_run
from tests.support.idle_wizard import click_on, screen_text, until
from tui.screens.compare import COLOURS, CompareScreen, legend_lines, names_of, series_of, table_lines
from tui.wizard.run_chooser import RunChooser


@pytest.fixture
def chooser(tmp_path: Path, config: Callable[..., Any]) -> RunChooser:
    for name, beta in (("a", 0.1), ("b", 0.3), ("c", 0.5)):
        compared_run(
            tmp_path / name, beta=beta, reward_accuracy=0.75, reward_accuracy_low=0.5, reward_accuracy_high=0.9
        )
    return RunChooser(config(output_dir=tmp_path / "a"), tmp_path, find_runs(tmp_path))


async def test_with_keys_alone(chooser: RunChooser):
    async with chooser.run_test(size=(80, 24)) as pilot:
        await pilot.press("c")
        assert not isinstance(chooser.screen, CompareScreen), "two runs have to be marked first"
        await pilot.press("g", "x", "x", "c")
        await until(pilot, lambda: "2 runs" in screen_text(chooser) and "Reward margin" in screen_text(chooser))
        await pilot.press("end")
        await until(pilot, lambda: "75% (50% to 90%)" in screen_text(chooser))
        await pilot.press("escape")
        await until(pilot, lambda: "Which run?" in screen_text(chooser))
        await pilot.press("q")
    assert chooser.return_value is None


async def test_with_the_mouse_alone(chooser: RunChooser):
    async with chooser.run_test(size=(120, 35)) as pilot:
        await until(pilot, lambda: "marks" in screen_text(chooser))
        await click_on(pilot, chooser, "x marks", lambda: screen_text(chooser).count("●") >= 2)
        await click_on(pilot, chooser, "c compares", lambda: isinstance(chooser.screen, CompareScreen))
        await until(pilot, lambda: "Options that differ" in screen_text(chooser))


@pytest.mark.parametrize("width", [60, 78, 118, 198])
def test_the_tables_fit_and_name_the_options_that_differ(chooser: RunChooser, tmp_path: Path, width: int):
    found = compare([tmp_path / name for name in ("a", "b", "c")])
    lines = [*legend_lines(found, width), *table_lines(found, width)]
    assert all(line.cell_length <= width for line in lines)
    shown = [line.plain for line in lines]
    (beta,) = [line for line in shown if line.startswith("Beta ")]
    assert beta.split() == ["Beta", "0.1", "0.3", "0.5"]
    assert sum("━━" in line and "better" in line for line in shown) == 3


def test_each_run_has_its_own_colour_and_the_first_is_drawn_on_top():
    series = series_of([[0.7, 0.5], [0.7, 0.6], []])
    assert [one.style for one in series] == [COLOURS[2], COLOURS[1], COLOURS[0]]
    assert series[-1].thick and [len(one.points) for one in series] == [0, 2, 2]


def test_runs_are_named_by_the_part_of_their_paths_that_differs():
    assert names_of([Path("/x/y/a"), Path("/x/y/b")]) == ["a", "b"]
    assert names_of([Path("/x/a/trials/1"), Path("/x/b/trials/1")]) == ["a/trials/1", "b/trials/1"]
