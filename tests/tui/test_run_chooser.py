"""With several runs side by side, the wizard first asks which one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.run.listing import find_runs
from tests.run.test_listing import made_run
from tui.wizard.run_chooser import RunChooser, choose_run, run_row

TRAINED: dict[str, Any] = {
    "pairs": {"pairs_sha256": "a", "ok": 151},
    "training": {"tensors_sha256": "b", "verdict": "no different"},
}


@pytest.fixture
def chooser(tmp_path: Path, config: Callable[..., Any]) -> Callable[..., RunChooser]:
    """Two runs, of which `b` is newer, with `--output-dir` at one of them or at a folder without a run."""
    made_run(tmp_path / "a", **TRAINED)
    made_run(tmp_path / "b", "training", "stopped").record_stage("training", started=5_000.0)
    return lambda own: RunChooser(config(output_dir=tmp_path / own), tmp_path, find_runs(tmp_path))


async def after(app: RunChooser, *keys: str) -> Path | None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press(*keys)
    return app.return_value


async def test_the_cursor_is_on_the_run_of_output_dir_and_enter_opens_it(chooser, tmp_path: Path):
    assert await after(chooser("a"), "enter") == tmp_path / "a"


async def test_another_run_can_be_chosen(chooser, tmp_path: Path):
    assert await after(chooser("a"), "k", "enter") == tmp_path / "b"


async def test_a_new_run_can_be_started_if_output_dir_is_not_a_run_yet(chooser, tmp_path: Path):
    assert await after(chooser("new"), "enter") == tmp_path / "b"
    assert await after(chooser("new"), "G", "enter") == tmp_path / "new"


async def test_leaving_opens_no_run(chooser):
    assert await after(chooser("a"), "q") is None


def test_with_one_run_there_is_nothing_to_choose(tmp_path: Path, config):
    made_run(tmp_path / "a")
    assert choose_run(config(output_dir=tmp_path / "new")) == tmp_path / "new"


@pytest.mark.parametrize("width", [80, 118, 138, 198])
def test_a_row_shows_the_outcome_of_the_run_and_fits(width: int, tmp_path: Path):
    made_run(tmp_path / "a-run-with-a-name-that-is-longer-than-a-narrow-row-has-room-for", **TRAINED)
    (run,) = find_runs(tmp_path)
    row = run_row(run, tmp_path, width).plain
    assert len(row) <= width and "151 pairs" in row and "no different" in row and "done" in row
    assert row.strip().startswith("a-run-with-a-n"), "most of the name is shown"
