"""A stage's options as a form: read, written, and validated while typing."""

from __future__ import annotations

import pytest
from textual.content import Content

from engine.core.options import options
from engine.pipeline.trials import options_to_try
from tests.support.idle_wizard import Sessions, click_on, open_stage, screen_text, turn_to, until
from tui.runs.runner import Runner
from tui.screens.base import STAGE_OPTIONS, options_of
from tui.widgets.option_help import (
    choices_of,
    consequence_sentence,
    differs,
    option_help_lines,
    parse_input,
    shown_value,
)
from tui.widgets.option_rows import OptionRows
from tui.widgets.options_editor import OptionsEditor
from tui.wizard.app import Wizard

OPTION = {option.name: option for option in options()}
SCREEN_ONLY = {option.name for option in options() if option.group == "Display"}


def test_every_option_is_on_a_screen():
    shown = {option.name for stage in STAGE_OPTIONS for option in options_of(stage)}
    assert set(OPTION) - shown == SCREEN_ONLY
    known = set(OPTION) | {option.group for option in options()}
    assert all(name in known for chosen in STAGE_OPTIONS.values() for name in chosen)


def drawn(rows: OptionRows, width: int = 100) -> list[Content]:
    return [rows.row_content(index, width) for index in range(rows.row_count)]


async def editor_of(pilot, app: Wizard, stage: str, option: str) -> OptionsEditor:
    """The form of a stage with the cursor on an option."""
    await open_stage(pilot, app, stage)
    if app.main.view.page != "Options":
        await pilot.press("o")
    await until(pilot, lambda: app.main.view.page == "Options")
    editor = app.main.view.options_editor
    await until(pilot, lambda: editor.rows.values, "the values")
    editor.rows.focus()
    editor.rows.go_to(option)
    await pilot.pause()
    return editor


async def test_a_value_is_checked_while_it_is_typed_and_used_once_it_is_saved(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "pairs", "num_examples")
        assert "Number of prompts to make pairs from." in screen_text(app)
        assert "a whole number, at least 1   default 2500   --num-examples" in screen_text(app)
        await pilot.press("enter", *"3x")
        await until(pilot, lambda: "✗" in screen_text(app) and "integer" in screen_text(app))
        await pilot.press("enter")
        assert editor.editing and runner.config.num_examples == 2500, "an invalid value is not saved"
        await pilot.press("backspace", "1")
        await until(pilot, lambda: "✓ Enter saves" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: not editor.editing)
        assert runner.config.num_examples == 31 and runner.config.output_dir.name == "run"
        await until(pilot, lambda: "● Number of prompts" in screen_text(app))
        await pilot.press("d")
        await until(pilot, lambda: runner.config.num_examples == 2500)


async def test_typed_text_is_visible(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        await editor_of(pilot, app, "training", "beta")
        await pilot.press("enter", *"0.123")
        await until(pilot, lambda: "0.123" in screen_text(app))
        await pilot.press("escape", "slash", *"accumul")
        await until(pilot, lambda: "accumul" in screen_text(app))


async def test_esc_leaves_the_value_as_it_was(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "training", "beta")
        await pilot.press("enter", *"0.7", "escape")
        await until(pilot, lambda: not editor.editing)
        assert runner.config.beta == 0.1 and app.main.view.page == "Options"
        await pilot.press("j")
        assert editor.rows.option.name == "learning_rate", "the list has the focus again"


async def test_arrows_and_enter_step_through_choices_and_switches(runner: Runner):
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


async def test_an_empty_input_lets_the_program_choose_if_it_may(runner: Runner):
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
        y = [row.plain for row in drawn(editor.rows)].index(
            next(r.plain for r in drawn(editor.rows) if "Beta" in r.plain)
        )
        await pilot.click("#option-rows", offset=(5, y))
        assert editor.rows.option.name == "beta"
        await pilot.click("#option-rows", offset=(5, y), times=2)
        await until(pilot, lambda: editor.editing)


def test_a_value_is_compared_with_its_default_as_a_number():
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
def test_the_choices_of_an_option(name: str, choices: tuple):
    assert choices_of(OPTION[name]) == choices


def test_blank_text_is_none_only_if_none_is_allowed():
    assert parse_input(OPTION["repo_root"], "  ") is None
    assert parse_input(OPTION["split"], "  ") == ""
    assert parse_input(OPTION["split"], " train ") == "train"


async def test_turning_to_the_options_and_back_with_o(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await open_stage(pilot, app, "preflight")
        await turn_to(pilot, app, "Options")
        await pilot.press("o")
        await until(pilot, lambda: app.main.view.page == "Overview")


# -- labels, values and descriptions ------------------------------------------------------------------------------------


def test_every_option_has_a_label_that_is_unique_under_its_heading():
    named = [(option.topic, option.label) for option in options()]
    assert all(label and topic for topic, label in named)
    assert len(set(named)) == len(named)


def test_values_are_shown_with_their_units():
    assert shown_value(OPTION["max_new_tokens"], 1512) == "1,512 tokens"
    assert shown_value(OPTION["server_timeout"], 120.0) == "120 s"
    assert shown_value(OPTION["eval_fraction"], 0.125) == "12.5 %"
    assert shown_value(OPTION["cpu_ref_model"], None) == "automatic" and shown_value(OPTION["repo_url"], None) == ""
    assert shown_value(OPTION["seed"], 42) == "42" and shown_value(OPTION["install"], True) == "yes"


def test_a_training_option_explains_how_to_try_several_values():
    descriptions = {
        name: " ".join(line.plain.strip() for line in option_help_lines(OPTION[name], "", False, False, 160))
        for name in OPTION
    }
    assert "`stage3-tui sweep --beta A,B`" in descriptions["beta"]
    assert {name for name, words in descriptions.items() if "stage3-tui sweep" in words} == set(options_to_try())


def test_several_addresses_are_shown_as_they_are_typed():
    servers = next(option for option in options() if option.name == "server_url")
    assert shown_value(servers, ("http://a/v1", "http://b/v1")) == "http://a/v1, http://b/v1"
    assert shown_value(servers, None) == "" and differs(servers, ("http://a/v1",)) and not differs(servers, None)


def test_a_share_may_be_typed_in_percent():
    assert (
        parse_input(OPTION["eval_fraction"], " 15 % ") == "0.15"
        and parse_input(OPTION["eval_fraction"], "0.2") == "0.2"
    )
    assert parse_input(OPTION["eval_fraction"], "x%") == "x%", "the configuration says what is wrong with it"


def test_a_change_names_what_it_repeats_how_long_it_takes_and_what_is_kept():
    done = {"adapter": 2.0, "preflight": 7.0, "pairs": 3_000.0, "quality": 60.0, "training": 240.0, "packaging": 9.0}
    assert consequence_sentence(OPTION["learning_rate"], done) == (
        "A change repeats training (about 4m), then packaging if the results differ; pairs and quality are kept."
    )
    assert consequence_sentence(OPTION["eval_prompts"], done) == (
        "A change repeats the evaluation, then packaging if the results differ; pairs, quality and training are kept."
    )
    assert consequence_sentence(OPTION["save_steps"], done) == "A change affects no result."
    assert consequence_sentence(OPTION["repo_root"], done) == "A change affects nothing that is already done."
    assert consequence_sentence(OPTION["learning_rate"], {}) == ""


def test_the_description_below_the_rows_is_wrapped_and_never_cut():
    for width in (40, 78, 164):
        for option in options():
            lines = option_help_lines(option, "", False, False, width, {"training": 240.0})
            assert all(line.cell_length <= width for line in lines)
            assert "".join(option.sentence.split()) in "".join("".join(line.plain for line in lines).split())


def test_rows_are_aligned_and_have_label_value_and_name():
    rows = OptionRows([option for option in options() if option.group == "Training"])
    rows.update({option.name: option.default for option in options()})
    shown = [row.plain for row in drawn(rows, 78)]
    assert all(len(row) <= 78 for row in shown)
    names = [f"  {option.name.replace('_', '-')}" for option in rows.options]
    starts = {row.index(name) for name in names for row in shown if row.rstrip().endswith(name)}
    assert len(starts) == 1
    assert [type(row) for row in rows.rows[:2]] == [str, type(OPTION["beta"])]


async def test_common_options_come_first_and_a_dot_shows_the_rest(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        editor = await editor_of(pilot, app, "training", "beta")
        assert all(option.common for option in editor.rows.options) and "more options" in screen_text(app)
        assert "Significance of the tests" not in screen_text(app)
        await pilot.press("full_stop")
        await until(pilot, lambda: editor.rows.hidden == 0)
        assert editor.rows.option.name == "beta", "the cursor stays where it was"
        await pilot.press("full_stop")
        await until(pilot, lambda: editor.rows.hidden > 0)


async def test_an_option_is_found_by_typing_and_esc_shows_all_again(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await editor_of(pilot, app, "training", "beta")
        await pilot.press("slash", *"4 bits")
        await until(pilot, lambda: [option.name for option in editor.rows.options] == ["load_in_4bit"])
        await pilot.press("enter", "right")
        await until(pilot, lambda: runner.config.load_in_4bit)
        await pilot.press("slash", *"zzz")
        await until(pilot, lambda: "No option matches." in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: len(editor.rows.options) > 1)
        assert app.main.view.page == "Options"


async def test_the_cursor_passes_over_headings_in_both_directions(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await editor_of(pilot, app, "pairs", "dataset")
        rows = editor.rows
        seen = []
        for key in ("G", *"k" * len(rows.options)):
            await pilot.press(key)
            seen.append(rows.option.name)
        assert seen[-1] == rows.options[0].name and set(seen) == {option.name for option in rows.options}


async def test_with_the_mouse_alone(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(120, 40)) as pilot:
        await click_on(pilot, app, "Training", lambda: app.main.selected == "training")
        await click_on(pilot, app, " Options ", lambda: app.main.view.page == "Options")
        editor = app.main.view.options_editor
        await click_on(pilot, app, "more options", lambda: editor.rows.hidden == 0)
        await click_on(pilot, app, "Checkpoint every", lambda: editor.rows.option.name == "save_steps", rows=range(30))
