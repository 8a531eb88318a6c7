"""Every screen over a made-up run: its content at each size, and foreign text stays text."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.events import (
    Forecast,
    GpuReading,
    PairFailed,
    PairMade,
    Progress,
    RunStarted,
    ServerReading,
    Servers,
    StageFinished,
    StageStarted,
    Telemetry,
)
from engine.core.stage_table import STAGE, STAGES
from engine.run.folder import Run
from engine.run.journal import read_journal
from engine.run.state import RunState, fold
from tests.support.idle_wizard import is_open, open_stage, screen_text, turn_to, until
from tests.support.made_up_run import HOSTILE, RAW_SEQUENCES, failed_run, make_run, write_pairs
from tui.formatting import short_path
from tui.keys import KEYS
from tui.runs.runner import Runner
from tui.runs.watcher import Watcher
from tui.screens.log import LogRows, LogScreen
from tui.screens.stage_descriptions import DESCRIPTIONS, description_of
from tui.widgets.rail import clock, flat_number_at, flat_rail, run_rows, run_summary, tall_rail
from tui.widgets.run_progress import seconds_remaining
from tui.wizard.app import Wizard, first_stage

SIZES = [(80, 24), (160, 48)]
PICTURE = "{0[0]}x{0[1]}".format


@pytest.mark.fault("G2")
@pytest.mark.parametrize("size", SIZES, ids=PICTURE)
async def test_every_view_of_every_stage_opens_and_shows_hostile_text_as_text(finished: Runner, size: tuple[int, int]):
    app = Wizard(finished)
    async with app.run_test(size=size) as pilot:
        for stage in STAGES:
            await open_stage(pilot, app, stage)
            for page in app.main.view.pages:
                await turn_to(pilot, app, page)
                await pilot.pause(0.1)
                text = screen_text(app)
                assert STAGE[stage].title in text and f" {page} " in text
                assert not any(raw in text for raw in RAW_SEQUENCES)


@pytest.mark.parametrize("size", SIZES, ids=PICTURE)
async def test_a_failure_shows_what_why_and_what_to_do(tmp_path: Path, config, size):
    folder = failed_run(tmp_path / "run")
    app = Wizard(Runner(config(output_dir=folder), Run(folder)))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "settings/tokens" in screen_text(app))
        text = screen_text(app)
        assert app.main.selected == "credentials"
        for part in (
            "The token was refused [/].",
            "The Hub said: 401 ␛]52;c;AAAA",
            "run.log",
            "✗ failed",
        ):
            assert part in text
        assert not any(raw in text for raw in RAW_SEQUENCES)


async def test_a_watched_run_is_drawn_and_cannot_be_started(tmp_path: Path, config):
    folder = make_run(tmp_path / "run", through="training", pairs=20)
    app = Wizard(Watcher(Run(folder), config(output_dir=folder)))
    async with app.run_test(size=(120, 40)) as pilot:
        await open_stage(pilot, app, "training")
        await until(pilot, lambda: "watching" in screen_text(app))
        await pilot.press("r", "a")
        await pilot.pause()
        assert not {"run_stage", "run_all", "redo"} & {
            key.action for key in KEYS if key.label and app.is_key_enabled(key)
        }
        await turn_to(pilot, app, "Options")
        await pilot.press("enter")
        await pilot.pause()
        assert "Another process owns" in screen_text(app)


@pytest.mark.parametrize("size", SIZES, ids=PICTURE)
async def test_one_line_shows_the_servers_while_pairs_are_made(tmp_path: Path, config, size):
    folder = make_run(tmp_path / "run", through="pairs", pairs=20)
    away = ServerReading(
        "http://b:8000/v1", "out", f"The server at http://b:8000/v1 returned 502 {HOSTILE[1]}. It is gone."
    )
    servers = Servers("server", (ServerReading("http://a:8000/v1", running=14, waiting=3, cache=0.4), away))
    runner = Runner(config(output_dir=folder), Run(folder))
    at_work = fold(read_journal(folder / layout.EVENTS_JSONL)).apply(servers, 1.79e9 + 9e4)
    runner._state = at_work
    app = Wizard(runner)
    async with app.run_test(size=size) as pilot:
        await open_stage(pilot, app, "pairs")
        text = "1 of 2 servers · 14 running, 3 waiting, cache 40% · http://b"
        await until(pilot, lambda: text in screen_text(app))
        assert not any(raw in screen_text(app) for raw in RAW_SEQUENCES)
        runner._state = at_work.apply(StageFinished("pairs", "done", "20 pairs"), 1.79e9 + 9e4 + 1)
        await until(pilot, lambda: "servers" not in screen_text(app))


@pytest.mark.fault("G3")
async def test_clicks_in_hostile_text_do_nothing(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_stage(pilot, app, "workspace")
        await pilot.press("l")
        await until(pilot, lambda: is_open(app, LogScreen))
        await until(pilot, lambda: "[@click" in screen_text(app), "the hostile text")
        rows = app.screen.query_one(LogRows)
        rows.cursor = next(
            at for at, line in enumerate(rows.lines) if "[@click" in line.text
        )  # shown in full below the list
        await pilot.pause()
        shown, window = screen_text(app).splitlines(), app.screen.query_one(".window").region
        places = [
            (line.index(mark) + 1, y)
            for y, line in enumerate(shown)
            for mark in ("[@click", "[/", "[red")
            if mark in line and (line.index(mark) + 1, y) in window
        ]
        assert len(places) >= 3
        for place in places:
            await pilot.click(offset=place)
        assert app.is_running and is_open(app, LogScreen)


@pytest.mark.fault("G8")
async def test_a_small_terminal_gets_a_plain_sentence(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(79, 24)) as pilot:
        await until(pilot, lambda: "needs 80 and 24" in " ".join(screen_text(app).split()))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "needs 80" not in screen_text(app))
        await pilot.resize_terminal(40, 10)
        await pilot.pause(0.2)
        assert app.is_running


async def test_under_100_columns_the_rail_is_one_line(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(99, 30)) as pilot:
        await until(pilot, lambda: "0✓ Packaging done" in screen_text(app))
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "10 ✓ Packaging" in screen_text(app))


# -- descriptions of stages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_describes_what_it_will_do(stage: str, config):
    text = description_of(stage, config(), RunState())
    assert set(DESCRIPTIONS) == set(STAGES) and all(sentence.endswith(".") for sentence in text)


def test_a_description_has_the_options_and_the_forecast(config):
    state = RunState().apply(Forecast({"pairs": 2880.0}, {}), 1.0)
    text = " ".join(description_of("pairs", config(num_examples=37, dataset="mine.jsonl"), state))
    assert "37 prompts of mine.jsonl" in text and "48m" in text
    assert "0.25" in " ".join(description_of("training", config(beta=0.25), state))


async def test_a_stage_offers_actions_before_it_runs(runner: Runner):
    app = Wizard(runner)
    async with app.run_test(size=(100, 30)) as pilot:
        await open_stage(pilot, app, "pairs")
        await until(pilot, lambda: "2,500 prompts" in screen_text(app))
        assert "run all" in screen_text(app) and "options" in screen_text(app)


# -- the rail ----------------------------------------------------------------------------------------------------------


def rail(state: RunState, now: float) -> list[str]:
    return [line.plain for _, line in tall_rail(state, "pairs", now, 34)]


def test_the_rail_has_a_line_per_stage_with_its_state_and_time(finished: Runner):
    state = finished.snapshot()
    tall = rail(state, 1.79e9)
    assert len(tall) == 10 and all(len(line) == 34 for line in tall)
    assert "✓ Workspace" in tall[0] and "↷ Credentials" in tall[2] and "skipped" in tall[2]
    flat = flat_rail(state, "pairs", 80)
    assert flat.cell_length <= 80 and "7✓ Pairs done" in flat.plain


@pytest.mark.parametrize(
    ("outcome", "glyph"), [("failed", "✗"), ("refused", "⊘"), ("stopped", "■"), ("skipped", "↷"), ("done", "✓")]
)
def test_the_rail_shows_how_a_stage_ended(runner: Runner, outcome, glyph):
    state = runner.snapshot().apply(StageStarted("pairs"), 1.0)
    assert "▶ Pairs" in rail(state, 2.0)[6]
    row = rail(state.apply(StageFinished("pairs", outcome, "x"), 5.0), 9.0)[6]
    assert f"{glyph} Pairs" in row and (outcome in row or "4s" in row)


def test_the_running_stage_has_a_second_line_with_bar_rate_and_time_left():
    state = RunState().apply(StageStarted("pairs"), 100.0)
    state = state.apply(Progress(1_000, 2_500, "prompts", 2.5, 600.0, stage="pairs"), 160.0)
    rows = rail(state, 160.0)
    assert len(rows) == 11 and all(len(row) <= 34 for row in rows)
    assert rows[7].count("█") == 4 and rows[7].endswith("2.5/s 10m left")
    assert [name for name, _ in tall_rail(state, "pairs", 160.0, 34)][6:8] == ["pairs", "pairs"], "a click on either"


def test_the_run_is_summarised_below_the_stages(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    state = RunState().apply(RunStarted("x", "0.1.0", 7, "box", "", STAGES), 0.0).apply(StageStarted("pairs"), 100.0)
    state = state.apply(PairMade("a", "?", "no", "yes"), 130.0).apply(PairFailed("b", "?", "meta"), 150.0)
    state = state.apply(Progress(2, 20, "prompts", 0.05, 360.0, stage="pairs"), 160.0)
    state = state.apply(Telemetry((GpuReading(0, "H100", 31 << 30, 80 << 30),), 1 << 30, 2 << 30, 8 << 30), 160.0)
    assert dict(run_rows(state, 160.0)) == {
        "elapsed": "1m 00s", "left": "~6m", "done at": "00:08", "peak VRAM": "31.0 GiB", "usable": "1 of 2 pairs",
    }  # fmt: skip
    assert clock(86_400.0 + 60, 0.0) == "Fri 00:01"
    assert run_rows(RunState(), 1.0) == (), "nothing is known yet"
    lines = run_summary(state, 160.0, 34, 4)
    assert len(lines) == 4 and all(line.cell_length <= 34 for line in lines)
    monkeypatch.undo()
    time.tzset()


def test_the_rail_has_elapsed_and_forecast_times():
    state = RunState().apply(Forecast({"pairs": 2880.0, "training": 7500.0}, {}), 1.0)
    rows = rail(state, 2.0)
    assert rows[6].rstrip().endswith("~48m") and rows[8].rstrip().endswith("~2h 05m")
    state = state.apply(StageStarted("pairs"), 100.0)
    assert rail(state, 160.0)[6].rstrip().endswith("1m 00s of ~48m")
    assert seconds_remaining(state, 160.0) == 2820.0 + 7500.0
    assert seconds_remaining(RunState(), 1.0) is None


def test_a_click_on_the_flat_rail_finds_its_stage(runner: Runner):
    state = runner.snapshot()
    plain = flat_rail(state, "pairs", 80).plain
    assert flat_number_at(state, "pairs", 80, plain.index("Pairs")) == 6
    assert flat_number_at(state, "pairs", 80, plain.index("0·")) == 9
    assert flat_number_at(state, "pairs", 80, 79) is None


async def test_a_run_folder_at_home_is_shown_as_a_shell_would(finished: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(finished.run.folder.parent))
    app = Wizard(finished)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: " ~/run " in screen_text(app))
        monkeypatch.setenv("HOME", str(finished.run.folder / "else"))
    assert short_path(finished.run.folder) == str(finished.run.folder)


async def test_a_click_on_the_rail_selects_a_stage(finished: Runner):
    app = Wizard(finished)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        await pilot.pause(0.2)
        await pilot.click("#rail", offset=(10, 1 + 3))
        await until(pilot, lambda: app.main.selected == "dependencies")


def test_the_first_screen_is_the_current_stage(runner: Runner, finished: Runner):
    assert first_stage(runner.snapshot()) == "workspace"
    assert first_stage(finished.snapshot()) == "packaging"


# -- markup ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("G2")
def test_the_markup_of_hostile_text_is_never_parsed():
    """No widget parses text as markup: Static and Label get Content, or `markup=False`."""
    for path in (Path(__file__).parents[2] / "tui").rglob("*.py"):
        source = path.read_text()
        assert "from_markup" not in source and "markup=True" not in source, path
        for call in re.findall(r"\b(?:Static|Label|Button|Option|Checkbox)\(([^\n]*)", source):
            plain = (
                not call
                or call.startswith((")", "id="))
                or "Content" in call
                or "markup=False" in call
                or "_prompt" in call
            )
            assert plain, f"{path}: {call}"
        for title in re.findall(r"border_(?:sub)?title = ([^\n]*)", source):
            assert title.startswith("Content("), f"{path}: {title}"


def test_hostile_text_is_in_the_made_up_run(tmp_path: Path):
    """Without this, the tests above would prove nothing."""
    folder = make_run(tmp_path / "run", pairs=60)
    journal = (folder / layout.EVENTS_JSONL).read_text()
    assert all(ascii(text)[1:-1].split("\\")[0] in journal for text in HOSTILE)
    write_pairs(tmp_path / "pairs.jsonl", 70)
    assert "\\u001b]52" in (tmp_path / "pairs.jsonl").read_text()
