"""The first page, with keys alone and with the mouse alone: what is missing can be changed in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.config import load_config
from engine.demo.preset import ASSETS, demo_defaults
from engine.pipeline.ingredients import Ingredient
from engine.run.folder import Run
from tests.support.idle_wizard import Sessions, click_on, is_open, screen_text, until
from tui.runs.runner import Runner
from tui.screens.dialogs import Question
from tui.screens.start import ingredient_row
from tui.wizard.app import Wizard


@pytest.fixture
def begun(tmp_path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def start(**given: object) -> Runner:
        config = load_config({"output_dir": tmp_path / "run", **given}, preset=demo_defaults(), environment={})
        return Runner(config, Run(config.output_dir), session_factory=sessions)

    return start


async def test_with_keys_alone(begun, tmp_path: Path):
    runner = begun(adapter_path=str(tmp_path / "nothing"))
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "Missing: adapter" in screen_text(app))
        assert "Choose the folder or Hub id of the Stage 2 adapter." in screen_text(app)
        await pilot.press("enter", "ctrl+u", *str(ASSETS / "adapter"), "enter")
        await until(pilot, lambda: "Nothing is missing" in screen_text(app))
        assert runner.config.adapter_path == str(ASSETS / "adapter")
        await pilot.press("P")
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("n")
        await until(pilot, lambda: runner.config.judge == "auto")
        await until(pilot, lambda: "Missing: adapter" in screen_text(app))
        assert runner.config.output_dir == tmp_path / "run"


async def test_with_the_mouse_alone(begun):
    runner = begun(num_examples=12)
    app = Wizard(runner)
    async with app.run_test(size=(120, 35)) as pilot:
        await until(pilot, lambda: "12 prompts" in screen_text(app) and "Nothing is missing" in screen_text(app))
        await click_on(pilot, app, "P presets", lambda: is_open(app, Question))
        await click_on(pilot, app, "the notebook's settings", lambda: runner.config.judge == "auto")
        await until(pilot, lambda: "Anthropic/hh-rlhf" in screen_text(app))


@pytest.mark.parametrize("asks", [False, True])
async def test_only_a_permitted_wizard_asks_the_hub(begun, asks: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("tui.screens.workspace.query_hub", lambda config, run, token: asked.append(config) or {})
    runner = begun()
    runner.may_query_hub = asks
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "Nothing is missing" in screen_text(app))
        await pilot.pause(0.1)
        assert bool(asked) is asks


@pytest.mark.parametrize("width", [60, 78, 100, 164])
def test_a_line_is_never_wider_than_the_screen_and_shows_the_end_of_a_path(width: int):
    one = Ingredient("Adapter", "adapter_path", f"/a/{'very/' * 30}long [/] path", "missing", "not found")
    line = ingredient_row(one, 25, width)
    assert line.cell_length <= width and "long [/] path" in line.plain and "not found" in line.plain
