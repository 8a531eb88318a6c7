"""Every screen as a picture (SVG) at two sizes in one theme, and one screen in the others, held against tests/tui/snapshots.

`make snapshots` draws them anew; then look at what changed. `make screens` draws every screen at three sizes in a dark, a light and
the ANSI theme, for a person to look at.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path, PosixPath

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from engine.core import clock
from engine.core.events import (
    Forecast,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Telemetry,
)
from engine.core.stage_table import STAGES
from engine.pipeline import ingredients
from engine.run.folder import Run
from tests.support.idle_wizard import look_at, screen_text, until
from tests.support.made_up_run import GIB, failed_run, make_run
from themes.loader import BUILT_IN, DEFAULT
from tui.runs.runner import Runner
from tui.screens import workspace
from tui.wizard.app import Wizard

FOLDER = Path(__file__).parent / "snapshots"
SIZES = {name: tuple(map(int, name.split("x"))) for name in ("60x16", "80x24", "120x35", "160x48", "200x50")}
KEPT = [("80x24", DEFAULT), ("160x48", DEFAULT)]
OTHER_THEMES = sorted({path.stem for path in BUILT_IN.glob("*.toml")} - {DEFAULT})
TO_LOOK_AT = [(size, theme) for size in ("80x24", "120x35", "200x50") for theme in (DEFAULT, "daylight", "ansi")]
"""Drawn by `make screens` for a person. Compared only where a picture is kept; but each must fit."""
every_case = pytest.mark.parametrize(
    ("size", "theme"), [*KEPT, *(pytest.param(*case, marks=pytest.mark.slow) for case in TO_LOOK_AT)]
)
UPDATE = os.environ.get("UPDATE_SNAPSHOTS") == "1"
SHOWN = "/root/work/artifacts"
NOW = 1.79e9 + 3_600
TAKEN: set[str] = set()
RAN: set[str] = set()
"""Of this process: names of pictures, and of the tests that drew them."""


class ShownPath(PosixPath):
    """A path that is read normally but displayed as if on the machine of the pictures."""

    def __str__(self) -> str:
        return re.sub(r"^.*(?=/stage3_constitutional)", SHOWN, super().__str__())

    def __fspath__(self) -> str:
        return super().__str__()


@pytest.fixture(autouse=True)
def still(monkeypatch, request):
    """Stops animations, and hides everything specific to this machine."""
    if not request.node.get_closest_marker("slow"):
        RAN.add(request.node.name)
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr(clock, "now", lambda: NOW)
    monkeypatch.setattr(platform, "node", lambda: "gpu-box")
    monkeypatch.setattr(workspace, "disk_usage", lambda folder: (88.0 * GIB, 500.0 * GIB))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/home/of-nobody/cache")
    monkeypatch.setattr(ingredients, "free_bytes", lambda folder: 412 * GIB)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("HOME", "/home/of-nobody")
    monkeypatch.setenv("TMUX", "none")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def wizard(tmp_path: Path, config) -> Callable[..., Wizard]:
    """The wizard over a folder filled by `make`."""

    def start(make: Callable[[Path], object], **options: object) -> Wizard:
        folder = tmp_path / "stage3_constitutional"
        make(folder)
        run = Run(folder)
        run.folder = ShownPath(run.folder)
        return Wizard(Runner(config(output_dir="artifacts/stage3_constitutional", **options), run))

    return start


class Shots:
    """Takes pictures of an app in one theme, and collects those that changed or do not fit."""

    def __init__(self, pilot: Pilot, app: Wizard, size: str, theme: str, tmp_path: Path) -> None:
        self.pilot, self.app, self.size = pilot, app, size
        self.problems: list[str] = []
        self._tmp_path = tmp_path
        app.theme = theme

    async def take(self, name: str) -> None:
        self.app._drawn = None  # draw everything, whatever was drawn before
        await self.app.tick()
        drawn, name = await self._settled(), f"{name}-{self.size}-{self.app.theme}.svg"
        case = (self.size, self.app.theme)
        if case in TO_LOOK_AT:
            self._show(name, drawn)
        if case in KEPT or case not in TO_LOOK_AT:
            self._compare(name, drawn)
        self.problems += [f"{name}: {problem}" for problem in what_does_not_fit(self.app)]

    async def _settled(self) -> str:
        """Wait until the screen is stable: scrollbars and columns appear a moment later."""
        before, now = "", "-"
        while before != now:
            await self.pilot.pause(0.04)
            before, now = now, self.app.export_screenshot(title="stage3-tui")
        return now

    def _show(self, name: str, drawn: str) -> None:
        """Keep the file for inspection."""
        folder = Path(os.environ.get("PICTURES_FOLDER", self._tmp_path))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(drawn, encoding="utf-8")

    def _compare(self, name: str, drawn: str) -> None:
        path = FOLDER / name
        TAKEN.add(name)
        if UPDATE:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(drawn, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != drawn:
            (self._tmp_path / name).write_text(drawn, encoding="utf-8")
            self.problems.append(f"{self._tmp_path / name}\n{first_difference(path, drawn)}")

    def check(self) -> None:
        assert not self.problems, "not as it was (`make snapshots` if that is meant):\n" + "\n".join(self.problems)


def first_difference(path: Path, drawn: str) -> str:
    """The first line of text that differs between two pictures; their styles if the texts are equal."""
    if not path.exists():
        return "  there is no such picture yet"
    before, now = words_of(path.read_text(encoding="utf-8")), words_of(drawn)
    for one, other in zip(before, now, strict=False):
        if one != other:
            return f"  was: {one}\n  is:  {other}"
    return f"  the same words in other colours or places ({len(before)} and {len(now)} pieces)"


def words_of(svg: str) -> list[str]:
    return [re.sub(r"&#160;", " ", piece) for piece in re.findall(r">([^<>\n]+)</text>", svg)]


def what_does_not_fit(app: Wizard) -> list[str]:
    """Widgets that extend beyond the screen, or beyond a parent that does not scroll horizontally."""
    problems = []
    for widget in app.screen.walk_children():
        parent = widget.parent
        if not widget.display or not widget.region or widget.region.right <= parent.region.right:
            continue
        if parent.styles.overflow_x == "hidden" or not parent.max_scroll_x:
            problems.append(f"{widget!r} ends in column {widget.region.right}, {parent!r} in {parent.region.right}")
    return problems


async def views(shots: Shots, pages: dict[str, tuple[str, ...]]) -> None:
    """Each of the given views of each stage."""
    for stage, wanted in pages.items():
        for page in wanted:
            await turn_to(shots, stage, page)
            await shots.take(f"{STAGES.index(stage) + 1:02}-{stage}-{page.lower()}")


async def turn_to(shots: Shots, stage: str, page: str) -> None:
    app = shots.app
    if app.main.selected != stage:
        await look_at(shots.pilot, app, stage)
    await app.main.view.turn_to(page)
    if page == "Pairs":
        browser = app.main.view.browser
        await until(shots.pilot, lambda: browser.pairs.count and not browser.store.unjudged)
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
                "pairs": ("Making", "Options"),
                "quality": ("Gate", "Pairs"),
                "training": ("Curves", "Verdict", "Options"),
                "packaging": ("Overview",),
            },
        )
        shots.check()


@every_case
async def test_windows_and_what_is_written(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, pairs=60))
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await look_at(pilot, app, "training")
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
        await until(pilot, lambda: browser.pairs.has_focus and browser.pairs.count and not browser.store.unjudged)
        await pilot.press("slash", *"reason:identical", "enter")
        await until(pilot, lambda: 0 < browser.pairs.shown < 60)
        await pilot.press("x")
        await until(pilot, lambda: browser.pairs.row.word == "rejected")
        app.clear_notifications()
        await pilot.pause(0.1)
        await shots.take("pairs-filtered")
        await pilot.press("e")
        await until(pilot, lambda: browser.editor.display)
        await pilot.pause(0.1)
        await shots.take("pairs-editor")
        shots.check()


@every_case
async def test_before_anything_ran(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: folder.mkdir())
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        for stage in ("workspace", "credentials", "pairs", "training"):
            await look_at(pilot, app, stage)
            if stage == "workspace":
                await until(pilot, lambda: "Missing: adapter" in screen_text(app))
                app.main.set_focus(None)
            await shots.take(f"new-{stage}")
        shots.check()


@pytest.mark.fault("E1")
@every_case
async def test_while_it_trains_without_a_gpu_after_a_warning(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, through="training", pairs=20, gpu=False))
    async with app.run_test(size=SIZES[size]) as pilot:
        state = app.source._state.apply(RunStarted(SHOWN, "0.1.0", 7, "gpu-box", "", STAGES), NOW - 900)
        state = state.apply(StageStarted("training"), NOW - 900)
        state = state.apply(Forecast({"training": 1_380.0}, {"training": 10 * GIB}), NOW - 900)
        for step in state.train_steps[-60:-20]:
            state = state.apply(step, NOW - 900 + 6 * (step.step - 145))
        app.source._state = state.apply(Telemetry((), 9 * GIB, 21 * GIB, 128 * GIB, 37.0, "no NVIDIA GPU here"), NOW)
        await look_at(pilot, app, "training")
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
        await look_at(pilot, app, "credentials")
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
        await look_at(pilot, app, "quality")
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
    """The pair browser: it has most of the colours."""
    app = wizard(lambda folder: make_run(folder, pairs=60))
    async with app.run_test(size=SIZES["160x48"]) as pilot:
        shots = Shots(pilot, app, "160x48", DEFAULT, tmp_path)
        await turn_to(shots, "quality", "Pairs")
        for app.theme in OTHER_THEMES:
            await shots.take("theme")
        shots.check()


async def test_what_reaches_over_the_edge_is_found(wizard):
    app = wizard(lambda folder: folder.mkdir())
    async with app.run_test(size=SIZES["80x24"]) as pilot:
        await until(pilot, lambda: app.main.is_whole)
        assert what_does_not_fit(app) == []
        wide = Static("wide")
        wide.styles.width = 81
        await app.main.view.mount(wide)
        await until(pilot, lambda: what_does_not_fit(app))
        assert "Static" in what_does_not_fit(app)[0]


def test_no_picture_is_left_over():
    """Every picture is drawn by a test above; skipped if only some of those ran."""
    if len(RAN) - 1 < 5 * len(KEPT) + 3:
        pytest.skip("not all pictures were drawn in this process")
    assert {path.name for path in FOLDER.glob("*.svg")} == TAKEN
