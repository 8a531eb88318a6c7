"""The log screen: search, filter by level, follow, copy a line, and go from an error to its stage; by keys and by mouse."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from textual.widgets import Input

from engine.core import layout
from engine.core.events import Message, StageFinished, StageStarted
from engine.run.journal import Entry
from engine.run.state import RunState, fold
from tests.support.idle_wizard import click_on, is_open, screen_text, until
from tui.runs.runner import Runner
from tui.screens.log import LogRows, LogScreen
from tui.screens.log_lines import LogLine, file_rows, message_rows
from tui.wizard.app import Wizard

T = 1_700_000_000.0


def state_of(*events: tuple[float, object]) -> RunState:
    return fold(Entry(number, T + when, event) for number, (when, event) in enumerate(events))


def test_failures_are_among_the_messages_in_order_of_time():
    state = state_of(
        (0, StageStarted("adapter")),
        (2, Message("info", "reading", "adapter")),
        (
            3,
            StageFinished(
                "adapter", "failed", "no", what="No adapter.", why="The folder is empty.", what_to_do="Fill it."
            ),
        ),
        (4, Message("warning", "later")),
    )
    rows = message_rows(state)
    assert [row.level for row in rows] == ["info", "error", "warning"]
    assert rows[1].stage == "adapter" and rows[1].text == "No adapter. The folder is empty. Fill it."


def test_a_line_has_the_stage_that_ran_and_a_traceback_has_the_level_of_its_error():
    state = state_of((0, StageStarted("pairs")), (60, StageFinished("pairs", "done")), (61, StageStarted("training")))
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(T + 30))
    later = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(T + 90))
    rows = file_rows(f"{clock},123 ERROR torch: broke\n  File x, line 1\n{later},000 INFO trl: goes on", state)
    assert [(row.level, row.stage) for row in rows] == [("error", "pairs"), ("error", "pairs"), ("info", "training")]
    assert rows[0].text == "torch: broke"


@pytest.fixture
def logged(finished: Runner) -> Runner:
    """Three hundred lines of run.log, of which every tenth is a warning and one an error."""
    words = {0: "WARNING"}
    lines = [f"2026-11-29 10:00:00,{n:03} {words.get(n % 10, 'INFO')} engine: line {n}" for n in range(300)]
    lines[123] = "2026-11-29 10:00:00,123 ERROR engine: the disk is full"
    (Path(finished.run.folder) / layout.RUN_LOG).write_text("\n".join(lines) + "\n")
    return finished


def rows(app: Wizard) -> LogRows:
    return app.screen.query_one(LogRows)


def log_is_drawn(app: Wizard) -> bool:
    return is_open(app, LogScreen) and bool(app.screen.query(LogRows)) and rows(app).has_focus


async def test_with_keys_alone(logged: Runner):
    app = Wizard(logged)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("l")
        await until(pilot, lambda: log_is_drawn(app))
        await pilot.press("v")
        await until(pilot, lambda: rows(app).row_count == 300, "run.log")
        assert rows(app).cursor == 299 and "line 299" in screen_text(app)
        await pilot.press("e")
        assert {line.level for line in rows(app).lines} == {"warning", "error"}
        await pilot.press("e")
        await until(pilot, lambda: "the disk is full" in screen_text(app))
        assert rows(app).row_count == 1
        await pilot.press("e", "slash", *"line 12", "enter")
        await until(pilot, lambda: "“line 12”" in screen_text(app))
        found = [line.text for line in (rows(app).lines[at] for at in rows(app).matches)]
        assert len(found) == 10  # 12 and 120 to 129, of which 123 is another line
        before = rows(app).cursor
        await pilot.press("N")
        assert rows(app).cursor < before and rows(app).line is not None and "line 12" in rows(app).line.text
        await pilot.press("c")
        assert "line 12" in app.clipboard
        await pilot.press("f")
        assert rows(app).follows
        with (Path(logged.run.folder) / layout.RUN_LOG).open("a") as file:
            file.write("2026-11-29 10:00:01,000 INFO engine: one more\n")
        await until(pilot, lambda: rows(app).cursor == 300, "the new line")
        await pilot.press("slash", *"more", "escape")
        assert rows(app).search_text == "" and is_open(app, LogScreen) and not app.screen.query_one(Input).display
        await pilot.press("escape")
        await until(pilot, lambda: not is_open(app, LogScreen))


async def test_from_a_line_to_its_stage(logged: Runner):
    app = Wizard(logged)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("1", "l")
        await until(pilot, lambda: log_is_drawn(app))
        about = [at for at, line in enumerate(rows(app).lines) if line.stage == "dependencies"]
        rows(app).cursor = about[0]
        await pilot.press("enter")
        await until(pilot, lambda: app.main.selected == "dependencies", "the stage")
        assert not is_open(app, LogScreen)


async def test_with_the_mouse_alone(logged: Runner):
    app = Wizard(logged)
    async with app.run_test(size=(120, 35)) as pilot:
        app.action_log()
        await until(pilot, lambda: log_is_drawn(app))
        await click_on(pilot, app, "run.log", lambda: rows(app).row_count == 300)
        await click_on(pilot, app, "level", lambda: rows(app).level == "warning")
        await click_on(pilot, app, "find", lambda: app.screen.query_one(Input).has_focus)
        await click_on(pilot, app, "line 290", lambda: rows(app).line is not None and "290" in rows(app).line.text)
        await click_on(pilot, app, "copy", lambda: "line 290" in app.clipboard)
        await click_on(pilot, app, "close", lambda: not is_open(app, LogScreen))


def test_a_copied_line_has_its_time_level_and_stage():
    assert LogLine("10:00:00", "error", "pairs", "it broke").full_text == "10:00:00 error pairs it broke"
