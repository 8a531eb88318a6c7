"""The wizard by its keys: moving between stages, the engine in its thread, dialogs, and shutdown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input

from engine.core.config import Stage3Config
from engine.core.errors import DiskError, ExitCode
from engine.core.events import Message, Progress, StageFinished, StageStarted
from engine.core.options import options
from engine.core.stage_table import STAGES
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Entry
from tests.support.idle_wizard import FakeSession, Sessions, is_open, open_stage, screen_text, turn_to, until
from themes import saved
from tui.keys import KEYS, PLACES, bindings, footer_keys, help_rows, keys_markdown
from tui.pair_browser.browser import PairBrowser
from tui.process.signals import SAME_SECONDS
from tui.runs.runner import Runner
from tui.screens.dialogs import Dialog, Help, Question, help_lines
from tui.screens.log import LogRows, LogScreen
from tui.screens.main import MainScreen
from tui.screens.themes import ThemePicker
from tui.terminal import sequences
from tui.widgets.line_chart import LineChart
from tui.widgets.option_rows import OptionRows
from tui.widgets.row_list import RowList
from tui.widgets.text_field import TextField
from tui.wizard import notifications
from tui.wizard.app import Wizard, WizardEnd

OWNERS = {
    "app": Wizard,
    "stage": MainScreen,
    "list": RowList,
    "pairs": PairBrowser,
    "chart": LineChart,
    "options": OptionRows,
    "log": LogRows,
    "text": TextField,
    "field": Input,
    "window": Dialog,
}

# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", sorted(OWNERS))
def test_the_table_of_keys_matches_the_bindings(place: str):
    owner = OWNERS[place]
    bound = {
        (key, one.action) for key, all_of_key in owner._merge_bindings().key_to_bindings.items() for one in all_of_key
    }
    mine = [key for key in KEYS if key.place == place and not key.action.startswith("app.")]
    table = {(name, key.action) for key in mine for name in key.keys.split(",")}
    assert table <= bound
    if place == "app":
        assert bound == table
    for key in KEYS:
        if key in mine:
            assert hasattr(owner, f"action_{key.action.partition('(')[0]}"), key


def test_every_key_has_a_sentence_in_the_help_and_the_readme():
    sentences = {sentence for _, _, sentence in help_rows()}
    for key in KEYS:
        assert key.place in PLACES
        if not key.action.startswith("go"):
            assert key.sentence in sentences
    assert all(f"`{shown}`" in keys_markdown() for _, shown, _ in help_rows())
    assert len(bindings("app")) == sum(key.place == "app" for key in KEYS)


def test_no_key_is_one_that_docker_or_a_terminal_takes():
    names = {name for key in KEYS for name in key.keys.split(",")}
    assert not {"ctrl+p", "ctrl+q", "ctrl+i", "ctrl+m", "ctrl+b"} & names


def test_no_key_means_two_things_in_one_place():
    for place in OWNERS:
        names = [name for key in KEYS if key.place == place for name in key.keys.split(",")]
        assert len(names) == len(set(names))


def test_the_footer_starts_with_the_focused_part_and_ends_with_help():
    offered = footer_keys(("pairs", "stage", "app"))
    assert offered[0].place == "pairs" and offered[-1].action == "help"
    assert not any(key.place == "options" for key in offered)


def test_the_help_starts_with_the_keys_of_the_focused_part():
    lines = [line.plain for line in help_lines(("options", "list", "stage", "app"), 90)]
    assert lines[0].startswith("In the options  here")
    assert next(i for i, line in enumerate(lines) if line.startswith("In the list of pairs")) > 5


async def test_stages_are_walked_with_letters_brackets_and_digits(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        for keys, stage in (
            (("0",), 9),
            (("k",), 8),
            (("up",), 7),
            (("left_square_bracket",), 6),
            (("j", "down"), 8),
            (("1", "k"), 0),
        ):
            for key in keys:
                await pilot.press(key)
                await pilot.pause(0.05)
            await until(pilot, lambda stage=stage: app.main.selected == STAGES[stage] and app.main.view is not None)


async def test_v_or_a_click_on_its_name_shows_a_view(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_stage(pilot, app, "training")
        await until(pilot, lambda: app.main.view.page == "Verdict")
        await pilot.press("v")
        assert app.main.view.page == "Options"
        await pilot.press("V", "V")
        assert app.main.view.page == "Curves"
        await until(pilot, lambda: "Curves  Verdict" in screen_text(app))
        line = next(y for y, line in enumerate(screen_text(app).splitlines()) if "Curves  Verdict" in line)
        column = screen_text(app).splitlines()[line].index("Options")
        await pilot.click(offset=(column + 1, line))
        await until(pilot, lambda: app.main.view.page == "Options")


async def test_a_click_in_the_footer_presses_the_key(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "? help" in screen_text(app))
        footer = screen_text(app).splitlines()[-1]
        await pilot.click(offset=(footer.index("? help") + 1, 39))
        await until(pilot, lambda: is_open(app, Help))


async def test_dialogs_open_with_their_keys_and_close_with_esc_their_keys_or_a_click_outside(
    finished: Runner,
):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        for key, screen in (("question_mark", Help), ("l", LogScreen), ("t", ThemePicker)):
            for close in ("escape", key, None):
                await pilot.press(key)
                await until(pilot, lambda screen=screen: is_open(app, screen))
                if close is None:
                    await pilot.click(offset=(0, 0))
                else:
                    await pilot.press(close)
                await until(pilot, lambda: app.screen is app.main)


async def test_the_palette_goes_to_a_stage(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("ctrl+k")
        await until(pilot, lambda: app.screen is not app.main)
        await pilot.press(*"go to train")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, lambda: app.main.selected == "training")


async def test_the_palette_has_every_command_and_every_option(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        titles = [command.title for command in app.get_system_commands(app.screen)]
        for option in options():
            assert any(title.startswith(f"{option.label} ({option.flag}): ") for title in titles), option.name
        enabled = [key for key in KEYS if key.place == "app" and app.is_key_enabled(key)]
        named = {key.sentence.partition(";")[0].removesuffix(".") for key in enabled}
        assert {"Run all ten stages", "Themes, previewed as you move"} <= named & set(titles)


@pytest.mark.parametrize("name", ["beta", "judge_url", "output_dir", "device_login"])
async def test_the_palette_goes_to_an_option_in_its_form(finished: Runner, name: str):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("ctrl+k")
        await until(pilot, lambda: app.screen is not app.main)
        flag = name.replace("_", "-")
        await pilot.press(*f"(--{flag}):")
        await pilot.pause(0.7)
        await pilot.press("down", "enter")
        rows = f"#page-options {OptionRows.__name__}"
        await until(pilot, lambda: app.screen is app.main and bool(app.main.query(rows)), "the form")
        await until(pilot, lambda: app.main.query(rows).last(OptionRows).option.name == name, "the option")


# -- themes ------------------------------------------------------------------------------------------------------------


async def test_a_theme_is_previewed_under_the_cursor_and_saved_by_enter(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        previewed = set()
        await pilot.press("t")
        await until(pilot, lambda: is_open(app, ThemePicker))
        for _ in app.theme_names:
            await pilot.press("down")
            await pilot.pause(0.05)
            previewed.add(app.theme)
        assert previewed == set(app.theme_names)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.main)
        assert app.theme == "midnight", "Esc restores the previous theme"
        await pilot.press("t", "down", "enter")
        await until(pilot, lambda: app.screen is app.main)
        assert app.theme == app.theme_names[1]
    async with Wizard(finished).run_test(size=(100, 30)) as pilot:
        assert pilot.app.theme == app.theme_names[1], "the choice is saved for the next start"
    finished.config = finished.config.model_copy(update={"theme": "contrast"})
    async with Wizard(finished).run_test(size=(100, 30)) as pilot:
        assert pilot.app.theme == "contrast", "the option takes precedence"


@pytest.mark.parametrize("name", ["gone", "", "\udcff[/]"])
async def test_a_saved_theme_that_no_longer_exists_is_not_an_error(finished: Runner, name: str):
    saved.save_theme("midnight").write_bytes(name.encode(errors="surrogateescape"))
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)):
        assert app.theme == "midnight"


async def test_a_theme_that_cannot_be_saved_is_used_with_a_notice(finished: Runner, monkeypatch, tmp_path: Path):
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "in the way"))
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("t", "down", "enter")
        await until(pilot, lambda: any("could not be saved" in notice.message for notice in app._notifications))
        assert app.theme == app.theme_names[1]


async def test_no_color_means_the_plain_theme(finished: Runner, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)):
        assert app.theme == "ansi"


async def test_a_broken_user_theme_and_an_unknown_one_are_notices(tmp_path, config, monkeypatch):
    folder = tmp_path / "config" / "stage3-tui" / "themes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("[colours]\nprimary = '[/]'\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    app = Wizard(Runner(config(output_dir=tmp_path / "run", theme="no such theme"), Run(tmp_path / "run")))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause(0.2)
        assert app.theme == "midnight"
        assert len(app._notifications) == 2


async def test_a_small_screen_shows_one_notice_at_a_time(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.notify_user("Notice one")
        app.notify_user("Notice two")
        await until(pilot, lambda: "Notice two" in screen_text(app))
        assert "Notice one" not in screen_text(app)


# -- the engine --------------------------------------------------------------------------------------------------------


async def test_r_runs_up_to_the_selected_stage(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_stage(pilot, app, "dependencies")
        await pilot.press("r")
        await until(pilot, lambda: runner.snapshot().current is not None)
        assert sessions.last.calls == [("dependencies", None)]
        await pilot.press("r", "a")
        assert len(sessions.made) == 1, "one engine at a time"
        sessions.last.released.set()
        await until(pilot, lambda: not runner.running)
        assert runner.exit_code is ExitCode.DONE and sessions.last.closed
        await pilot.press("r")
        await until(pilot, lambda: len(sessions.made) == 2, "a second start")


async def test_a_stage_offers_its_actions_and_a_click_runs_one(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_stage(pilot, app, "adapter")
        await until(pilot, lambda: " r  run " in screen_text(app))
        shown = screen_text(app).splitlines()
        y = next(y for y, line in enumerate(shown) if " r  run " in line)
        await pilot.click(offset=(shown[y].index(" r  run ") + 1, y))
        await until(pilot, lambda: sessions.made and sessions.last.calls == [("adapter", None)])


async def test_the_view_follows_the_running_stage_until_the_user_selects_another(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: app.main.selected == "packaging")
        await pilot.press("2")
        await until(pilot, lambda: app.main.selected == "toolchain")
        await pilot.pause(0.5)
        assert app.main.selected == "toolchain" and not app.main.following
        await pilot.press("f")
        await until(pilot, lambda: app.main.selected == "packaging")


async def test_redo_asks_first(finished: Runner, sessions: Sessions):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_stage(pilot, app, "quality")
        await pilot.press("R")
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.main)
        assert not sessions.made
        await pilot.press("R")
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("y")
        await until(pilot, lambda: sessions.made and sessions.last.calls == [("quality", "quality")])


@pytest.mark.fault("A18")
async def test_a_session_that_fails_is_reported_on_the_screen(tmp_path, config):
    def broken(context: Context, listener: object) -> FakeSession:
        raise DiskError("The disk is full.", "No space left [/].", "Free some.")

    runner = Runner(config(output_dir=tmp_path), Run(tmp_path), session_factory=broken)
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.exit_code is ExitCode.DISK)
        assert "The disk is full." in runner.snapshot().messages[-1][1].text
        await until(pilot, lambda: any("The disk is full." in notice.message for notice in app._notifications))


@pytest.mark.parametrize(
    ("looked_at", "notices"), [("workspace", []), ("pairs", ["1 of 10 stages done. All is well."])]
)
async def test_the_end_is_a_notice_if_another_stage_is_on_the_screen(
    runner: Runner, sessions: Sessions, looked_at: str, notices: list[str]
):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_stage(pilot, app, "workspace")
        await pilot.press("r")
        await until(pilot, lambda: app.shown_state.running)
        await open_stage(pilot, app, looked_at)
        app.clear_notifications()
        sessions.last.released.set()
        await until(pilot, lambda: "✓ 1 of 10 stages done" in screen_text(app))  # not "finished"
        await pilot.pause(0.2)
        assert [notice.message for notice in app._notifications] == notices


def test_an_event_that_cannot_be_applied_does_not_stop_the_engine(runner: Runner):
    runner._listen(Entry(1, 1.0, StageStarted("no such stage")))
    runner._listen(Entry(2, 1.0, StageFinished("no such stage", "done")))
    runner._listen(Entry(3, 2.0, Message("info", "still here")))
    assert runner.snapshot().messages[-1][1].text == "still here"


@pytest.mark.fault("A20")
async def test_in_a_flood_of_events_drawing_is_limited_and_keys_work(
    tmp_path: Path, config: Callable[..., Stage3Config]
):
    class Flood(FakeSession):
        def run(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> ExitCode:
            self._emit(StageStarted("pairs"))
            for number in range(20_000):
                self._emit(Progress(number + 1, 20_000, "pairs", stage="pairs"))
            self.released.wait(20)
            return ExitCode.DONE

    made = Sessions(Flood)
    runner = Runner(config(output_dir=tmp_path / "run"), Run(tmp_path / "run"), session_factory=made)
    app = Wizard(runner)
    drawn = []
    async with app.run_test(size=(100, 30)) as pilot:
        draw = app.main.draw

        async def counted(*arguments: Any) -> bool:
            drawn.append(app.shown_state.stages["pairs"].progress)
            return await draw(*arguments)

        app.main.draw = counted
        await pilot.press("a", "1")
        await until(pilot, lambda: app.main.selected == "workspace")
        await until(
            pilot, lambda: app.shown_state.stages["pairs"].progress == Progress(20_000, 20_000, "pairs", stage="pairs")
        )
        made.last.released.set()
    assert 1 < len(drawn) < 200


async def test_outside_tmux_a_notice_says_that_the_terminal_may_be_closed(finished: Runner, monkeypatch):
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("STY", raising=False)
    app = Wizard(finished)
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("a", "a")
        await until(pilot, lambda: any(notifications.SAFE_TO_CLOSE in notice.message for notice in app._notifications))


async def test_inside_tmux_there_is_no_notice(finished: Runner, monkeypatch):
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    app = Wizard(finished)
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("a", "a")
        await until(pilot, lambda: app.notifications._logout_checked, "the check")
        assert not any(notifications.SAFE_TO_CLOSE in notice.message for notice in app._notifications)


@pytest.mark.fault("A9")
async def test_if_a_logout_ends_the_run_there_is_a_notice_even_inside_tmux(finished: Runner, monkeypatch):
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    looked = StageFinished("toolchain", "done", facts={"ends_at_logout": True})
    finished._state = finished._state.apply(looked, 1.0)
    app = Wizard(finished)
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("a", "a")
        await until(pilot, lambda: [notice.message for notice in app._notifications] == [notifications.ENDED_AT_LOGOUT])


# -- shutdown ----------------------------------------------------------------------------------------------------------


async def test_q_quits_when_nothing_is_running(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value is WizardEnd.FINISHED


@pytest.mark.fault("A17")
@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_q_asks_while_the_engine_runs_and_it_may_be_left_running(runner: Runner, sessions: Sessions, key: str):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press(key)
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("b")
        await until(pilot, lambda: app.screen is app.main)
        await pilot.press(key)
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("l")
        await pilot.pause()
    assert app.return_value is WizardEnd.LEFT_RUNNING
    assert runner.running, "the engine continues without the screen"
    sessions.last.released.set()
    runner.join(5)
    assert runner.exit_code is ExitCode.DONE


@pytest.mark.fault("A17")
async def test_stop_and_save_ends_the_engine_and_then_the_screen(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press("q")
        await until(pilot, lambda: is_open(app, Question))
        await pilot.press("down", "enter")
        await until(pilot, lambda: not runner.running)
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.STOPPED
    assert runner.exit_code is ExitCode.TERMINATED


async def test_a_run_that_ends_while_q_asks_needs_no_answer(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press("q")
        await until(pilot, lambda: is_open(app, Question))
        sessions.last.released.set()
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.FINISHED and runner.exit_code is ExitCode.DONE


async def test_s_stops_the_engine_and_the_screen_stays(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.snapshot().current is not None)
        await pilot.press("s")
        await until(pilot, lambda: not runner.running)
        await until(pilot, lambda: "■ stopped" in screen_text(app))
        assert app.is_running


@pytest.mark.fault("A5")
async def test_a_hang_up_leaves_the_engine_running(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        app.shutdown.hang_up()
        await pilot.pause()
    assert app.return_value is WizardEnd.LEFT_RUNNING and runner.running


async def test_a_hang_up_with_nothing_running_ends_with_129(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        app.shutdown.hang_up()
        await pilot.pause()
    assert app.return_value is WizardEnd.HUNG_UP and app.return_code == 129


async def test_a_signal_stops_and_leaves(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        app.shutdown.by_signal("SIGINT", ExitCode.INTERRUPTED)
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.STOPPED


@pytest.mark.fault("A4")
async def test_a_second_signal_leaves_at_once(tmp_path, config):
    class Deaf(FakeSession):
        def run(self, **asked: object) -> ExitCode:
            self.released.wait(20)
            return ExitCode.DONE

    made: list[Deaf] = []

    def factory(context: Context, listener: object) -> Deaf:
        made.append(Deaf(context, listener))
        return made[-1]

    runner = Runner(config(output_dir=tmp_path), Run(tmp_path), session_factory=factory)
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: made)
        app.shutdown.by_signal("SIGTERM", ExitCode.TERMINATED)
        app.shutdown.by_signal("SIGTERM", ExitCode.TERMINATED)
        await pilot.pause(SAME_SECONDS)
        assert app.return_value is None, (
            "the first one waits for the engine; the parent passes on what all processes get"
        )
        app.shutdown.by_signal("SIGTERM", ExitCode.TERMINATED)
        await pilot.pause()
    assert (app.return_value, app.return_code) == (WizardEnd.STOPPED, 143)
    made[0].released.set()


def test_a_terminal_that_is_not_a_terminal_is_gone(tmp_path: Path):
    parent = os.getppid()
    with (tmp_path / "file").open("w") as file:
        assert sequences.terminal_is_gone(file.fileno(), parent)
    outer, inner = os.openpty()
    assert not sequences.terminal_is_gone(inner, parent)
    assert sequences.terminal_is_gone(inner, parent + 1)
    os.close(outer)
    assert sequences.terminal_is_gone(inner, parent)
    os.close(inner)


async def test_c_copies_the_scp_command_and_names_the_saved_copy(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_stage(pilot, app, "packaging")
        await pilot.press("c")
        await pilot.pause()
        assert app.clipboard.startswith("scp root@gpu-box:")
        assert (finished.run / "logs/copied.txt").read_text().strip() == app.clipboard


async def test_a_click_on_a_command_copies_it(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_stage(pilot, app, "packaging")
        await until(pilot, lambda: "unzip stage3" in screen_text(app))
        shown = screen_text(app).splitlines()
        y = next(y for y, line in enumerate(shown) if "unzip stage3" in line)
        await pilot.click(offset=(shown[y].index("unzip") + 2, y))
        await until(pilot, lambda: app.clipboard.startswith("unzip stage3"))


async def test_the_charts_zoom_to_the_newest_steps(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(160, 48)) as pilot:
        await open_stage(pilot, app, "training")
        await turn_to(pilot, app, "Curves")
        await until(pilot, lambda: "Accuracy" in screen_text(app))
        await pilot.press("z")
        await until(pilot, lambda: "the newer half" in screen_text(app))
        assert "104" in screen_text(app)
        await pilot.press("z", "z")
        await until(pilot, lambda: "newer half" not in screen_text(app))
