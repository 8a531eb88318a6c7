"""The wizard shows what a start would do before it starts; a first start needs no confirmation."""

from __future__ import annotations

import pytest

from engine.pipeline.plan import PlannedStage
from tests.support.idle_wizard import Sessions, click_on, is_open, screen_text, until
from tui.runs.runner import Runner
from tui.screens.plan import PlanWindow, plan_lines
from tui.wizard.app import Wizard

PLANNED = [
    PlannedStage("adapter", "reused", "rank 8"),
    PlannedStage("pairs", "again", "num_examples changed from 160 to 500, 160 kept, 340 to make", 120.0),
    PlannedStage("quality", "open", "reused if unchanged: the pairs", 1.0),
    PlannedStage("training", "goes on", "it stopped"),
]


@pytest.fixture
def planned(finished: Runner, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage up to which a plan was requested."""
    asked: list[str] = []

    def plan(until: str) -> list[PlannedStage]:
        asked.append(until)
        return PLANNED

    monkeypatch.setattr(finished, "plan", plan)
    return asked


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_the_plan_is_shown_first_and_the_same_key_starts_the_run(
    size: tuple[int, int], finished: Runner, sessions: Sessions, planned: list[str]
):
    app = Wizard(finished)
    async with app.run_test(size=size) as pilot:
        await pilot.press("a")
        await until(
            pilot, lambda: is_open(app, PlanWindow) and "num_examples changed from 160 to 500" in screen_text(app)
        )
        assert "without Training" in screen_text(app) and not sessions.made
        await pilot.press("a")
        await until(pilot, lambda: sessions.made and sessions.last.calls == [("packaging", None)])
    assert planned == ["packaging"]


async def test_with_the_mouse_alone(finished: Runner, sessions: Sessions, planned: list[str]):
    app = Wizard(finished)
    async with app.run_test(size=(80, 24)) as pilot:
        footer = range(23, 24)
        await click_on(pilot, app, "a run all", lambda: is_open(app, PlanWindow), rows=footer)
        await click_on(pilot, app, "Esc cancels", lambda: app.screen is app.main)
        assert not sessions.made
        await click_on(pilot, app, "a run all", lambda: is_open(app, PlanWindow), rows=footer)
        await click_on(pilot, app, "Enter starts", lambda: sessions.made)


async def test_esc_changes_nothing(finished: Runner, sessions: Sessions, planned: list[str]):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        for key in ("r", "p"):
            await pilot.press(key)
            await until(pilot, lambda: is_open(app, PlanWindow))
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.main)
    assert not sessions.made


async def test_a_plan_that_fails_shows_why_and_the_run_can_still_start(
    finished: Runner, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
):
    def broken(until: str) -> list[PlannedStage]:
        raise OSError("the dataset [/] is gone")

    monkeypatch.setattr(finished, "plan", broken)
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: "the dataset [/] is gone" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: sessions.made)


async def test_a_first_start_begins_at_once(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: sessions.made)


def test_each_stage_is_reported_with_what_happens_to_it_and_nothing_is_wider_than_the_window():
    for width in (60, 104):
        lines = [line.plain for line in plan_lines(PLANNED, width)]
        assert all(len(line) <= width for line in lines)
        assert any("↻ Pairs" in line and "again" in line for line in lines)
        assert "About 2m, without Training." in " ".join(lines)
