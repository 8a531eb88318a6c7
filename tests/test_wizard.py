"""The wizard through its keys: every screen on a made-up run, the engine in its thread, and a token that shows nowhere."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event as Flag

import pytest
from textual import events
from textual.pilot import Pilot

from engine import names
from engine.config import Stage3Config
from engine.errors import DiskError, ExitCode
from engine.events import Message, Progress, RunFinished, RunStarted, StageFinished, StageStarted
from engine.journal import Entry
from engine.names import STAGES
from engine.options import options
from engine.pairs.edits import read_edits
from engine.run import Run
from engine.secrets import Secret
from engine.stages.base import Context
from tests.tui_fixtures import HOSTILE, RAW_SEQUENCES, failed_run, make_run, write_pairs
from tui import terminal
from tui.app import Wizard, WizardEnd, first_stage
from tui.keys import KEYS, bindings, help_rows, keys_markdown
from tui.runner import Runner
from tui.screens.base import STAGE_OPTIONS, options_of
from tui.screens.log import LogScreen
from tui.screens.options_form import OptionsForm
from tui.screens.windows import Help, Question
from tui.watcher import Watcher
from tui.widgets.pair_browser import PairBrowser
from tui.widgets.pair_list import PairList
from tui.widgets.rail import flat_number_at, flat_rail, tall_rail
from tui.widgets.token_field import TokenField

SIZES = [(80, 24), (160, 48)]
TOKEN = "hf_aVerySecretTokenOf1234567890"


class FakeSession:
    """Says that its stages begin, and works on the last one until it is asked to stop, or let go."""

    def __init__(self, context: Context, listener: Callable[[Entry], None]) -> None:
        self.context, self.listener = context, listener
        self.seq = 10_000
        self.asked: list[tuple[str, str | None]] = []
        self.let_go = Flag()
        self.closed = False

    def run(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> ExitCode:
        self.asked.append((until, redo_from))
        self._say(RunStarted("folder", "0", 1, "h", "", names.STAGES))
        self._say(StageStarted(until))
        while not self.let_go.wait(0.01):
            self._say(Progress(until, 1, 10, "things"))
            if self.context.stop.requested:
                self._say(StageFinished(until, "stopped", "The run was stopped.", what="stopped", exit_code=143))
                self._say(RunFinished(143, "stopped"))
                return ExitCode.TERMINATED
        self._say(StageFinished(until, "done", "All is well."))
        self._say(RunFinished(0, "All is well."))
        return ExitCode.DONE

    def close(self) -> None:
        self.closed = True

    def _say(self, event) -> None:
        self.seq += 1
        self.listener(Entry(self.seq, time.time(), event))


class Sessions:
    """A session factory that keeps what it made."""

    def __init__(self) -> None:
        self.made: list[FakeSession] = []

    def __call__(self, context: Context, listener: Callable[[Entry], None]) -> FakeSession:
        self.made.append(FakeSession(context, listener))
        return self.made[-1]

    @property
    def last(self) -> FakeSession:
        return self.made[-1]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions()
    yield made
    for session in made.made:
        session.let_go.set()


@pytest.fixture
def runner(tmp_path: Path, config: Callable[..., Stage3Config], sessions: Sessions) -> Runner:
    folder = tmp_path / "run"
    return Runner(config(output_dir=folder), Run(folder), session_factory=sessions)


@pytest.fixture
def finished(tmp_path: Path, config: Callable[..., Stage3Config], sessions: Sessions) -> Runner:
    """A run with all ten stages behind it."""
    folder = make_run(tmp_path / "run", pairs=40)
    return Runner(config(output_dir=folder), Run(folder), session_factory=sessions)


async def until(pilot: Pilot, holds: Callable[[], object], what: str = "it") -> None:
    for _ in range(200):
        if holds():
            return
        await pilot.pause(0.05)
    raise AssertionError(f"{what} did not come about within ten seconds")


def looks_at(app: Wizard, stage: str) -> bool:
    return app.main.selected == stage and app.main.view is not None


def is_open(app: Wizard, screen: type) -> bool:
    return isinstance(app.screen, screen)


def screen_text(app: Wizard) -> str:
    """What a person reads."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


# -- every screen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_every_screen_opens_and_shows_hostile_text_as_text(finished: Runner, size: tuple[int, int]):
    app = Wizard(finished)
    async with app.run_test(size=size) as pilot:
        for number in range(1, 11):
            await pilot.press(str(number % 10))
            await until(pilot, partial(looks_at, app, STAGES[number - 1]))
            for _ in app.main.view.PAGES:
                await pilot.pause(0.2)
                text = screen_text(app)
                assert names.STAGE[STAGES[number - 1]].title in text
                assert not any(raw in text for raw in RAW_SEQUENCES)
                await pilot.press("v")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_a_failure_says_what_why_and_what_to_do(tmp_path: Path, config, size):
    folder = failed_run(tmp_path / "run")
    app = Wizard(Runner(config(output_dir=folder), Run(folder)))
    async with app.run_test(size=size) as pilot:
        await pilot.pause(0.3)
        text = screen_text(app)
        assert app.main.selected == "credentials"
        for part in (
            "The token was refused [/].",
            "The Hub said: 401 ␛]52;c;AAAA",
            "settings/tokens",
            "run.log",
            "✗ failed",
        ):
            assert part in text
        assert not any(raw in text for raw in RAW_SEQUENCES)


async def test_a_watched_run_is_drawn_and_cannot_be_started(tmp_path: Path, config):
    folder = make_run(tmp_path / "run", through="training", pairs=20)
    app = Wizard(Watcher(Run(folder), config(output_dir=folder)))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("9")
        await pilot.pause(0.3)
        assert "watching" in screen_text(app)
        await pilot.press("r", "a", "e")
        await pilot.pause()
        assert not isinstance(app.screen, OptionsForm)
        assert not {"run_stage", "run_all", "edit"} & {key.action for key in KEYS if key.label and app.possible(key)}


async def test_clicks_in_hostile_text_do_nothing(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(160, 48)) as pilot:
        await pilot.press("1")
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, LogScreen))
        await pilot.pause(0.3)
        for y in range(0, 48, 2):
            for x in (40, 60, 80, 100):
                await pilot.click(offset=(x, y))
        assert app.is_running and isinstance(app.screen, LogScreen)


async def test_a_small_terminal_gets_a_plain_sentence(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(79, 24)) as pilot:
        await pilot.pause(0.2)
        assert "needs 80 and 24" in " ".join(screen_text(app).split())
        await pilot.resize_terminal(80, 24)
        await pilot.pause(0.3)
        assert "needs 80" not in screen_text(app)
        await pilot.resize_terminal(40, 10)
        await pilot.pause(0.3)
        assert app.is_running


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_table_of_keys_is_what_is_bound(finished: Runner):
    app = Wizard(finished)
    bound = {
        (key, binding.action) for key, all_of_key in app._bindings.key_to_bindings.items() for binding in all_of_key
    }
    table = {(name, key.action) for key in KEYS if key.where == "app" for name in key.keys.split(",")}
    assert {key for key, _ in bound} == {key for key, _ in table}
    assert bound == table
    assert not {"ctrl+q", "ctrl+p"} & {key for key, _ in bound}


def test_every_key_has_an_action_and_a_sentence_in_the_help():
    sentences = {sentence for _, _, sentence in help_rows()}
    for key in KEYS:
        action = key.action.partition("(")[0]
        owner = {"app": Wizard, "list": PairList, "choice": Help}.get(key.where)
        assert owner is None or hasattr(owner, f"action_{action}"), key
        if key.where == "app" and not action.startswith("go"):
            assert key.sentence in sentences
    assert all(f"`{shown}`" in keys_markdown() for _, shown, _ in help_rows())
    assert len(bindings("app")) == sum(key.where == "app" for key in KEYS)


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
            await until(pilot, partial(looks_at, app, STAGES[stage]), f"{keys}")


async def test_in_a_list_the_same_letters_move_the_cursor(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("8")
        await pilot.pause(0.2)
        await pilot.press("slash", *"heating", "enter")
        browser = app.main.view.query_one(PairBrowser)
        await until(pilot, lambda: 0 < browser.pairs.shown < browser.pairs.count)
        await pilot.press("j")
        assert browser.pairs.cursor == 1 and app.main.selected == "quality"
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: app.main.selected == "training")


async def test_help_log_and_palette_open_and_close(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        for key, screen in (("question_mark", Help), ("l", LogScreen)):
            await pilot.press(key)
            await until(pilot, partial(is_open, app, screen))
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.main)
        await pilot.press("ctrl+k")
        await until(pilot, lambda: app.screen is not app.main)
        await pilot.press(*"go to train")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, lambda: app.main.selected == "training")


async def test_every_theme_can_be_worn(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        worn = set()
        for _ in app.theme_names:
            await pilot.press("t")
            await pilot.pause(0.1)
            worn.add(app.theme)
        assert worn == set(app.theme_names)


async def test_no_color_means_the_plain_theme(finished: Runner, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)):
        assert app.theme == "ansi"


async def test_a_broken_user_theme_and_an_unknown_one_are_notices(finished: Runner, tmp_path, monkeypatch):
    folder = tmp_path / "config" / "stage3-tui" / "themes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("[colours]\nprimary = '[/]'\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    app = Wizard(finished, theme="no such theme")
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause(0.2)
        assert app.theme == "midnight"
        assert len(app._notifications) == 2


# -- the rail ----------------------------------------------------------------------------------------------------------


def test_the_rail_tells_every_state_in_a_word_and_a_glyph(finished: Runner):
    state = finished.snapshot()
    tall = [line.plain for line in tall_rail(state, "pairs", time.time(), 34, 2)]
    assert len(tall) == 20 and all(len(line) == 34 for line in tall)
    assert "✓ Workspace" in tall[0] and "done" in tall[1]
    assert "↷ Credentials" in tall[4] and "skipped" in tall[5]
    flat = flat_rail(state, "pairs", 80)
    assert flat.cell_length <= 80 and "7✓ Pairs done" in flat.plain


@pytest.mark.parametrize(
    ("outcome", "glyph"), [("failed", "✗"), ("refused", "⊘"), ("stopped", "■"), ("skipped", "↷"), ("done", "✓")]
)
def test_the_rail_shows_how_a_stage_ended(runner: Runner, outcome, glyph):
    state = runner.snapshot().apply(StageStarted("pairs"), 1.0)
    assert "▶ Pairs" in tall_rail(state, "pairs", 2.0, 34, 1)[6].plain
    state = state.apply(StageFinished("pairs", outcome, "x"), 5.0)
    for height in (1, 2):
        row = " ".join(line.plain for line in tall_rail(state, "pairs", 9.0, 34, height)[6 * height : 7 * height])
        assert f"{glyph} Pairs" in row
        assert outcome in row or "4s" in row


def test_a_click_on_the_flat_rail_finds_its_stage(runner: Runner):
    state = runner.snapshot()
    plain = flat_rail(state, "pairs", 80).plain
    assert flat_number_at(state, "pairs", 80, plain.index("Pairs")) == 6
    assert flat_number_at(state, "pairs", 80, plain.index("0·")) == 9
    assert flat_number_at(state, "pairs", 80, 79) is None


async def test_a_click_on_the_rail_looks_at_a_stage(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause(0.3)
        await pilot.click("#rail", offset=(10, 1 + 2 * 3))
        await until(pilot, lambda: app.main.selected == "dependencies")


def test_the_first_screen_is_where_the_run_stands(runner: Runner, finished: Runner):
    assert first_stage(runner.snapshot()) == "workspace"
    assert first_stage(finished.snapshot()) == "packaging"


# -- the engine ----------------------------------------------------------------------------------------------------------


async def test_r_runs_up_to_the_stage_that_is_looked_at(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("4")
        await until(pilot, lambda: app.main.selected == "dependencies")
        await pilot.press("r")
        await until(pilot, lambda: runner.snapshot().current is not None)
        assert sessions.last.asked == [("dependencies", None)]
        await pilot.press("r", "a")
        assert len(sessions.made) == 1, "one engine at a time"
        sessions.last.let_go.set()
        await until(pilot, lambda: not runner.running)
        assert runner.exit_code is ExitCode.DONE and sessions.last.closed
        await pilot.press("r")
        await until(pilot, lambda: len(sessions.made) == 2, "a second start")


async def test_the_view_follows_the_running_stage_until_somebody_looks_elsewhere(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: app.main.selected == "packaging")
        await pilot.press("2")
        await until(pilot, lambda: app.main.selected == "toolchain")
        await pilot.pause(0.5)
        assert app.main.selected == "toolchain" and not app.following
        await pilot.press("f")
        await until(pilot, lambda: app.main.selected == "packaging")


async def test_redo_asks_first(finished: Runner, sessions: Sessions):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("8")
        await until(pilot, lambda: app.main.selected == "quality")
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.main)
        assert not sessions.made
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("y")
        await until(pilot, lambda: sessions.made)
        await until(pilot, lambda: sessions.last.asked == [("quality", "quality")])


async def test_q_quits_when_nothing_runs(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value is WizardEnd.FINISHED


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_q_asks_while_the_engine_runs_and_it_may_be_left_running(runner: Runner, sessions: Sessions, key: str):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("b")
        await until(pilot, lambda: app.screen is app.main)
        await pilot.press(key)
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("l")
        await pilot.pause()
    assert app.return_value is WizardEnd.LEFT_RUNNING
    assert runner.running, "the engine goes on without the screen"
    sessions.last.let_go.set()
    runner.join(5)
    assert runner.exit_code is ExitCode.DONE


async def test_stop_and_save_ends_the_engine_and_then_the_screen(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("down", "enter")
        await until(pilot, lambda: not runner.running)
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.STOPPED
    assert runner.exit_code is ExitCode.TERMINATED


async def test_s_stops_the_engine_and_the_screen_stays(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.snapshot().current is not None)
        await pilot.press("s")
        await until(pilot, lambda: not runner.running)
        await pilot.pause(0.4)
        assert app.is_running and "■ stopped" in screen_text(app)


async def test_a_hang_up_leaves_the_engine_running(runner: Runner, sessions: Sessions):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        app.hang_up()
        await pilot.pause()
    assert app.return_value is WizardEnd.LEFT_RUNNING and runner.running


async def test_a_hang_up_with_nothing_running_ends_with_129(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(100, 30)) as pilot:
        app.hang_up()
        await pilot.pause()
    assert app.return_value is WizardEnd.HUNG_UP and app.return_code == 129


async def test_a_signal_stops_and_leaves_and_a_second_one_leaves_at_once(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        app.end_by_signal("SIGINT", ExitCode.INTERRUPTED)
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.STOPPED
    again = Wizard(runner)
    async with again.run_test(size=(100, 30)) as pilot:
        again._signalled = True
        again.end_by_signal("SIGTERM", ExitCode.TERMINATED)
        await pilot.pause()
    assert (again.return_value, again.return_code) == (WizardEnd.STOPPED, 143)


def test_a_terminal_that_is_no_terminal_is_gone(tmp_path: Path):
    import os

    parent = os.getppid()
    with (tmp_path / "file").open("w") as file:
        assert terminal.terminal_is_gone(file.fileno(), parent)
    outer, inner = os.openpty()
    assert not terminal.terminal_is_gone(inner, parent)
    assert terminal.terminal_is_gone(inner, parent + 1)
    os.close(outer)
    assert terminal.terminal_is_gone(inner, parent)
    os.close(inner)


async def test_a_session_that_breaks_is_told_on_the_screen(tmp_path, config):
    def broken(context: Context, listener: object) -> FakeSession:
        raise DiskError("The disk is full.", "No space left [/].", "Free some.")

    runner = Runner(config(output_dir=tmp_path), Run(tmp_path), session_factory=broken)
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.exit_code is ExitCode.DISK)
        assert "The disk is full." in runner.snapshot().messages[-1][1].text
        await pilot.pause(0.4)
        assert app.is_running


def test_an_event_that_cannot_be_folded_does_not_stop_the_engine(runner: Runner):
    runner._listen(Entry(1, 1.0, StageStarted("no such stage")))
    runner._listen(Entry(2, 1.0, StageFinished("no such stage", "done")))
    runner._listen(Entry(3, 2.0, Message("info", "still here")))
    assert runner.snapshot().messages[-1][1].text == "still here"


# -- options and decisions ----------------------------------------------------------------------------------------------


def test_every_option_stands_on_some_screen():
    shown = {option.name for stage in STAGES for option in options_of(stage)}
    assert {option.name for option in options()} - shown == {"theme", "mouse"}
    known = {option.name for option in options()} | {option.group for option in options()}
    assert all(name in known for chosen in STAGE_OPTIONS.values() for name in chosen)


async def test_an_option_is_edited_checked_and_used(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("7")
        await until(pilot, lambda: app.main.selected == "pairs")
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, OptionsForm))
        field = app.screen.query_one("#option-num_examples")
        field.focus()
        field.value = "none at all"
        await pilot.press("enter")
        await until(pilot, lambda: field.has_class("-refused"))
        assert "num_examples" in screen_text(app)
        field.value = "31"
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.main)
        assert runner.config.num_examples == 31
        assert runner.config.output_dir.name == "run"


async def test_options_are_not_edited_while_the_engine_runs(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("a")
        await until(pilot, lambda: runner.running)
        await pilot.press("e")
        await pilot.pause(0.2)
        assert app.screen is app.main


async def test_decisions_about_pairs_are_appended_and_taken_back(finished: Runner):
    app = Wizard(finished)
    edits = finished.run / names.EDITS_JSONL
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("8")
        await until(pilot, lambda: app.main.selected == "quality")
        await pilot.press("v")
        browser = app.main.view.query_one(PairBrowser)
        await until(pilot, lambda: browser.pairs.count == 40)
        await pilot.press("x")
        assert read_edits(edits)["pair-000000"].accepted is False
        await pilot.press("y", "w")
        decision = read_edits(edits)["pair-000000"]
        assert decision.accepted is True and decision.flipped
        await pilot.press("u", "u", "u")
        assert "pair-000000" not in read_edits(edits)


async def test_c_copies_the_scp_line_and_says_where_it_stands(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("0")
        await until(pilot, lambda: app.main.selected == "packaging")
        await pilot.press("c")
        await pilot.pause()
        assert app.clipboard.startswith("scp root@gpu-box:")
        assert (finished.run / "logs/copied.txt").read_text().strip() == app.clipboard


# -- the token ------------------------------------------------------------------------------------------------------------


async def test_the_token_is_given_to_the_engine_and_shown_nowhere(runner: Runner, sessions: Sessions, caplog):
    caplog.set_level(logging.DEBUG)
    heard: list[str] = []
    app = Wizard(runner)

    def hear(message: object) -> None:
        if not isinstance(message, (events.Key, events.Paste)):
            heard.append(repr(message))

    async with app.run_test(size=(100, 40), message_hook=hear) as pilot:
        await pilot.press("3")
        await until(pilot, lambda: app.main.selected == "credentials" and app.main.view is not None)
        field = app.main.view.query_one(TokenField)
        before = app.export_screenshot()
        field.focus()
        await pilot.press(*TOKEN[:12])
        field.post_message(events.Paste(f"  {TOKEN[12:20]}\n"))
        await pilot.press(*TOKEN[20:], "ctrl+c", "ctrl+x")
        await pilot.pause(0.2)
        if app.screen is not app.main:
            await pilot.press("escape")
        full = app.export_screenshot()
        assert "••••••••" in full and "••••••••" not in before
        texts = [full, repr(field), repr(app.screen), str(app.tree), app.clipboard, *heard]
        field.focus()
        await pilot.press("enter")
        await until(pilot, lambda: sessions.made)
        texts += [app.export_screenshot(), repr(field), *heard]
        assert not field.filled
    assert sessions.last.context.token.reveal() == TOKEN
    assert sessions.last.asked == [("credentials", None)]
    for text in (*texts, caplog.text):
        assert not any(TOKEN[i : i + 6] in text for i in range(3, len(TOKEN) - 6))


async def test_the_first_keys_do_not_land_in_the_token(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("3")
        await until(pilot, lambda: app.main.selected == "credentials" and app.main.view is not None)
        await pilot.press("j")
        await until(pilot, lambda: app.main.selected == "dependencies")


def test_the_length_of_a_token_does_not_show():
    short, long = TokenField(), TokenField()
    short.on_paste(events.Paste("hf_1"))
    long.on_paste(events.Paste(" 'hf_" + "1" * 90 + "'\r\n"))
    assert short.render().plain == long.render().plain
    long.clear()
    assert not long.filled


async def test_a_crash_prints_no_locals_and_no_token(runner: Runner, capsys, caplog):
    app = Wizard(runner)

    def broken() -> None:
        secret = Secret(TOKEN)
        plain = secret.reveal()
        raise RuntimeError(f"something broke after {len(plain)} characters")

    with pytest.raises(RuntimeError):
        async with app.run_test(size=(100, 30)) as pilot:
            app.call_later(broken)
            await pilot.pause(0.3)
    assert app.return_code == 1
    assert "RuntimeError" in app.crashed
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err + caplog.text
    assert "broken" in caplog.text, "the traceback is in the log"


def test_the_markup_of_hostile_text_is_never_parsed():
    """No widget of ours takes text as markup: Static and Label are given Content, or `markup=False`."""
    for path in (Path(__file__).parents[1] / "tui").rglob("*.py"):
        source = path.read_text()
        assert "from_markup" not in source and "markup=True" not in source, path
        for call in re.findall(r"\b(?:Static|Label)\(([^\n]*)", source):
            plain = not call or call.startswith((")", "id=")) or "Content" in call or "markup=False" in call
            assert plain, f"{path}: {call}"


def test_hostile_text_is_in_the_made_up_run(tmp_path: Path):
    """Otherwise the tests above prove nothing."""
    folder = make_run(tmp_path / "run", pairs=60)
    journal = (folder / names.EVENTS_JSONL).read_text()
    assert all(ascii(text)[1:-1].split("\\")[0] in journal for text in HOSTILE)
    write_pairs(tmp_path / "pairs.jsonl", 70)
    assert "\\u001b]52" in (tmp_path / "pairs.jsonl").read_text()
