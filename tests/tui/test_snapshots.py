"""Every screen as a picture (SVG) at two sizes in one theme, and one screen in the others, compared with tests/tui/snapshots.

`make snapshots` draws them again; review what changed. `make screens` draws every screen at three sizes in a dark, a light
and the ANSI theme, for a person to look at.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Static

from engine.core.events import (
    Forecast,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Telemetry,
)
from engine.core.stage_table import STAGES
from tests.support.idle_wizard import open_stage, screen_text, until
from tests.support.made_up_run import GIB, failed_run, make_run
from tests.support.shots import (
    COMPARED,
    FOLDER,
    NOW,
    OTHER_THEMES,
    RAN,
    SHOWN,
    SIZES,
    TAKEN,
    Shots,
    every_case,
    what_does_not_fit,
)
from themes.loader import DEFAULT

pytestmark = pytest.mark.usefixtures("still")


async def views(shots: Shots, pages: dict[str, tuple[str, ...]]) -> None:
    """Each of the given views of each stage."""
    for stage, wanted in pages.items():
        for page in wanted:
            await turn_to(shots, stage, page)
            await shots.take(f"{STAGES.index(stage) + 1:02}-{stage}-{page.lower()}")


async def turn_to(shots: Shots, stage: str, page: str) -> None:
    app = shots.app
    if app.main.selected != stage:
        await open_stage(shots.pilot, app, stage)
    await app.main.view.turn_to(page)
    if page == "Pairs":
        browser = app.main.view.browser
        await until(shots.pilot, lambda: browser.pairs.count and not browser.store.unchecked)
        await shots.pilot.pause(0.1)
    app.main.set_focus(None)


@every_case
async def test_every_view_of_every_stage(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, pairs=60))
    async with app.run_test(size=SIZES[size]) as pilot:
        app.source._state = app.source._state.apply(
            Forecast(
                {"pairs": 2_950.0, "training": 1_380.0},
                {"pairs": 34 * GIB, "training": 58 * GIB},
                on_gpu=True,
                gpu=0,
                disk_bytes=9 * GIB,
            ),
            NOW,
        )
        shots = Shots(pilot, app, size, theme, tmp_path)
        await views(
            shots,
            {
                **dict.fromkeys(STAGES[:6], ("Overview",)),
                "preflight": ("Overview", "Pilot"),
                "pairs": ("Progress", "Options"),
                "quality": ("Gate", "Pairs"),
                "training": ("Curves", "Verdict", "Options"),
                "packaging": ("Overview",),
            },
        )
        shots.check()


@every_case
async def test_dialogs_and_the_text_editor(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, pairs=60))
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await open_stage(pilot, app, "training")
        for name, key in (("help", "question_mark"), ("log", "l"), ("redo", "R"), ("themes", "t")):
            await pilot.press(key)
            await until(pilot, lambda: app.screen is not app.main)
            await pilot.pause(0.1)
            await shots.take(f"window-{name}")
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.main)
        await pilot.press("b")
        await until(pilot, lambda: app.main.view.query("#browser"))
        browser = app.main.view.browser
        await until(pilot, lambda: browser.pairs.has_focus and browser.pairs.count and not browser.store.unchecked)
        await pilot.press("slash", *"reason:identical", "enter")
        await until(pilot, lambda: 0 < browser.pairs.row_count < 60)
        await pilot.press("x")
        await until(pilot, lambda: browser.pairs.row.state == "rejected")
        app.clear_notifications()
        await pilot.pause(0.1)
        await shots.take("pairs-filtered")
        await pilot.press("e")
        await until(pilot, lambda: browser.editor.display)
        await pilot.pause(0.1)
        await shots.take("pairs-editor")
        shots.check()


@every_case
async def test_a_new_run(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: folder.mkdir())
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        for stage in ("workspace", "credentials", "pairs", "training"):
            await open_stage(pilot, app, stage)
            if stage == "workspace":
                await until(pilot, lambda: "Missing: adapter" in screen_text(app))
                app.main.set_focus(None)
            await shots.take(f"new-{stage}")
        shots.check()


@pytest.mark.fault("E1")
@every_case
async def test_training_without_a_gpu_after_a_warning(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, through="training", pairs=20, gpu=False))
    async with app.run_test(size=SIZES[size]) as pilot:
        state = app.source._state.apply(RunStarted(SHOWN, "0.1.0", 7, "gpu-box", "", STAGES), NOW - 900)
        state = state.apply(StageStarted("training"), NOW - 900)
        state = state.apply(Forecast({"training": 1_380.0}, {"training": 10 * GIB}), NOW - 900)
        for step in state.train_steps[-60:-20]:
            state = state.apply(step, NOW - 900 + 6 * (step.step - 145))
        app.source._state = state.apply(Telemetry((), 9 * GIB, 21 * GIB, 128 * GIB, 37.0, "no NVIDIA GPU here"), NOW)
        await open_stage(pilot, app, "training")
        shots = Shots(pilot, app, size, theme, tmp_path)
        await shots.take("running-training")
        shots.check()


@every_case
async def test_a_failure_and_a_refusal(wizard, size: str, theme: str, tmp_path: Path):
    def refused(folder: Path) -> None:
        failed_run(folder)

    app = wizard(refused)
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await open_stage(pilot, app, "credentials")
        await shots.take("failed-credentials")
        refusal = StageFinished(
            "quality",
            "refused",
            "The gate is shut: usable share is 20.5% (at least 50.0%).",
            what="The gate is shut: usable share is 20.5% (at least 50.0%).",
            why="Training on these pairs would spend GPU hours on what cannot teach.",
            what_to_do='Use a better model or constitution. To train anyway: --accept-quality "your reason".',
            exit_code=9,
        )
        state = app.source._state.apply(StageStarted("quality"), NOW - 60)
        app.source._state = state.apply(refusal, NOW - 55).apply(RunFinished(9, refusal.summary), NOW - 55)
        app.notifications._finished = app.source._state.finished
        await open_stage(pilot, app, "quality")
        await shots.take("refused-quality")
        shots.check()


async def test_a_terminal_that_is_too_small(wizard, tmp_path: Path):
    app = wizard(lambda folder: folder.mkdir())
    async with app.run_test(size=(60, 16)) as pilot:
        await until(pilot, lambda: app.main.has_class("-too-small"))
        shots = Shots(pilot, app, "60x16", DEFAULT, tmp_path)
        await shots.take("too-small")
        shots.check()


async def test_one_screen_in_every_other_theme(wizard, tmp_path: Path):
    """The pair browser, which has most of the colours."""
    app = wizard(lambda folder: make_run(folder, pairs=60))
    async with app.run_test(size=SIZES["160x48"]) as pilot:
        shots = Shots(pilot, app, "160x48", DEFAULT, tmp_path)
        await turn_to(shots, "quality", "Pairs")
        for app.theme in OTHER_THEMES:
            await shots.take("theme")
        shots.check()


async def test_text_that_does_not_fit_is_found(wizard):
    app = wizard(lambda folder: folder.mkdir())
    async with app.run_test(size=SIZES["80x24"]) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        assert what_does_not_fit(app) == []
        wide = Static("wide")
        wide.styles.width = 81
        await app.main.view.mount(wide)
        await until(pilot, lambda: what_does_not_fit(app))
        assert "Static" in what_does_not_fit(app)[0]


def test_there_are_no_unused_snapshots():
    """Every snapshot belongs to a test above; skipped if only some of them ran."""
    if len(RAN) - 1 < 5 * len(COMPARED) + 3:
        pytest.skip("not all pictures were drawn in this process")
    assert {path.name for path in FOLDER.glob("*.svg")} == TAKEN
