"""A stage's options as a form: read, written, and validated while typing."""

from __future__ import annotations

import pytest

from engine.core.options import options
from tests.support.idle_wizard import Sessions, look_at, screen_text, turn_to, until
from tui.runs.runner import Runner
from tui.screens.base import STAGE_OPTIONS, options_of
from tui.widgets.options_editor import OptionsEditor, choices_of, differs, given
from tui.wizard.app import Wizard

OPTION = {option.name: option for option in options()}
SCREEN_ONLY = {option.name for option in options() if option.group == "Display"}


def test_every_option_stands_on_some_screen():
    shown = {option.name for stage in STAGE_OPTIONS for option in options_of(stage)}
    assert set(OPTION) - shown == SCREEN_ONLY
    known = set(OPTION) | {option.group for option in options()}
    assert all(name in known for chosen in STAGE_OPTIONS.values() for name in chosen)


async def editor_of(pilot, app: Wizard, stage: str, option: str) -> OptionsEditor:
    """The form of a stage with the cursor on an option."""
    await look_at(pilot, app, stage)
    if app.main.view.page != "Options":
        await pilot.press("o")
    await until(pilot, lambda: app.main.view.page == "Options")
    editor = app.main.view.query_one(OptionsEditor)
    await until(pilot, lambda: editor.rows.values, "the values")
    editor.rows.focus()
    editor.rows.cursor = [one.name for one in editor.rows.options].index(option)
    await pilot.pause()
    return editor


async def test_a_value_is_checked_while_it_is_typed_and_used_when_it_is_kept(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "pairs", "num_examples")
        assert "Number of prompts to make pairs from." in screen_text(app)
        assert "a whole number, at least 1 · default 2500 · --num-examples" in screen_text(app)
        await pilot.press("enter", *"3x")
        await until(pilot, lambda: "✗" in screen_text(app) and "integer" in screen_text(app))
        await pilot.press("enter")
        assert editor.editing and runner.config.num_examples == 2500, "what cannot be is not kept"
        await pilot.press("backspace", "1")
        await until(pilot, lambda: "✓ Enter saves" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: not editor.editing)
        assert runner.config.num_examples == 31 and runner.config.output_dir.name == "run"
        await until(pilot, lambda: "● num_examples" in screen_text(app))
        await pilot.press("d")
        await until(pilot, lambda: runner.config.num_examples == 2500)


async def test_esc_leaves_the_value_as_it_was(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "training", "beta")
        await pilot.press("enter", *"0.7", "escape")
        await until(pilot, lambda: not editor.editing)
        assert runner.config.beta == 0.1 and app.main.view.page == "Options"
        await pilot.press("j")
        assert editor.rows.option.name == "learning_rate", "the list has the focus again"


async def test_choices_and_switches_are_gone_through_with_arrows_and_enter(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await editor_of(pilot, app, "quality", "judge")
        await pilot.press("right")
        await until(pilot, lambda: runner.config.judge == "none")
        await pilot.press("left", "left")
        await until(pilot, lambda: runner.config.judge == "demo")
        await editor_of(pilot, app, "training", "load_in_4bit")
        await pilot.press("enter")
        await until(pilot, lambda: runner.config.load_in_4bit)
        await editor_of(pilot, app, "training", "gradient_checkpointing")
        await pilot.press("right", "right")
        await until(pilot, lambda: runner.config.gradient_checkpointing is False)
        await pilot.press("d")
        await until(pilot, lambda: runner.config.gradient_checkpointing is None)


async def test_nothing_typed_leaves_an_option_to_the_program_where_that_may_be(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await editor_of(pilot, app, "pairs", "generation_batch_size")
        await pilot.press("enter", *"12", "enter")
        await until(pilot, lambda: runner.config.generation_batch_size == 12)
        await pilot.press("enter", "ctrl+u", "enter")
        await until(pilot, lambda: runner.config.generation_batch_size is None)


async def test_the_output_folder_is_not_edited_here(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "workspace", "output_dir")
        await pilot.press("enter")
        await until(pilot, lambda: "on the command line" in screen_text(app))
        assert not editor.editing


async def test_options_edited_while_the_engine_runs_are_for_the_next_start(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await editor_of(pilot, app, "training", "beta")
        await pilot.press("enter", *"0.7", "enter")
        await until(pilot, lambda: runner.config.beta == 0.7)
        assert any("next start" in notice.message for notice in app._notifications)
        assert sessions.last.context.config.beta == 0.1


async def test_a_click_puts_the_cursor_on_an_option_and_a_second_one_opens_it(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "training", "num_train_epochs")
        await pilot.click("#option-rows", offset=(5, 1))
        assert editor.rows.option.name == "beta"
        await pilot.click("#option-rows", offset=(5, 1), times=2)
        await until(pilot, lambda: editor.editing)


def test_what_differs_from_its_default_is_known_by_number_and_not_by_spelling():
    assert not differs(OPTION["learning_rate"], 5e-05)
    assert differs(OPTION["learning_rate"], 5e-04)
    assert not differs(OPTION["repo_root"], None) and differs(OPTION["repo_root"], "/x")
    assert differs(OPTION["judge"], "self")


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("install", (False, True)),
        ("cpu_ref_model", (None, True, False)),
        ("report_to", ("none", "tensorboard")),
        ("beta", ()),
    ],
)
def test_what_there_is_to_choose_from(name: str, choices: tuple):
    assert choices_of(OPTION[name]) == choices


def test_blank_text_is_nothing_only_where_nothing_may_be():
    assert given(OPTION["repo_root"], "  ") is None
    assert given(OPTION["split"], "  ") == ""
    assert given(OPTION["split"], " train ") == "train"


async def test_turning_to_the_options_and_back_with_o(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await look_at(pilot, app, "preflight")
        await turn_to(pilot, app, "Options")
        await pilot.press("o")
        await until(pilot, lambda: app.main.view.page == "Overview")
