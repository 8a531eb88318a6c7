"""Snapshots of an application's screens: taken once they are stable, compared with the stored ones, and checked for text that
does not fit.

Fixtures: `still` hides everything specific to this machine, `wizard` starts one over a folder.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from engine.core import clock
from engine.pipeline import ingredients
from engine.run.folder import Run
from tests.support.made_up_run import GIB
from themes.loader import BUILT_IN, DEFAULT
from tui.runs.runner import Runner
from tui.screens import workspace
from tui.wizard.app import Wizard

FOLDER = Path(__file__).parents[1] / "tui" / "snapshots"
SIZES = {name: tuple(map(int, name.split("x"))) for name in ("60x16", "80x24", "120x35", "160x48", "200x50")}
COMPARED = [("80x24", DEFAULT), ("160x48", DEFAULT)]
OTHER_THEMES = sorted({path.stem for path in BUILT_IN.glob("*.toml")} - {DEFAULT})
TO_LOOK_AT = [(size, theme) for size in ("80x24", "120x35", "200x50") for theme in (DEFAULT, "daylight", "ansi")]
"""Drawn by `make screens` for a person to look at. Each must fit, but only those in COMPARED are compared."""
every_case = pytest.mark.parametrize(
    ("size", "theme"), [*COMPARED, *(pytest.param(*case, marks=pytest.mark.slow) for case in TO_LOOK_AT)]
)
UPDATE = os.environ.get("UPDATE_SNAPSHOTS") == "1"
SHOWN = "/root/work/artifacts"
NOW = 1.79e9 + 3_600
TAKEN: set[str] = set()
RAN: set[str] = set()
"""The names of the snapshots taken by this process, and of the tests that took them."""


class ShownPath(PosixPath):
    """A path that is read normally but displayed as if it were on the machine of the snapshots."""

    def __str__(self) -> str:
        return re.sub(r"^.*(?=/stage3_constitutional)", SHOWN, super().__str__())

    def __fspath__(self) -> str:
        return super().__str__()


@pytest.fixture
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
    """Opens the wizard on a folder filled by `make`."""

    def start(make: Callable[[Path], object], **options: object) -> Wizard:
        folder = tmp_path / "stage3_constitutional"
        make(folder)
        run = Run(folder)
        run.folder = ShownPath(run.folder)
        return Wizard(Runner(config(output_dir="artifacts/stage3_constitutional", **options), run))

    return start


class Shots:
    """Takes pictures of an app in one theme, and collects those that changed or do not fit the screen."""

    def __init__(self, pilot: Pilot, app: App[Any], size: str, theme: str, tmp_path: Path) -> None:
        self.pilot, self.app, self.size = pilot, app, size
        self.problems: list[str] = []
        self._tmp_path = tmp_path
        app.theme = theme

    async def take(self, name: str, *, compared: bool = True, is_ours: bool = True) -> None:
        """Take a snapshot of the screen.

        compared   compare it with the stored one of that name
        is_ours    its text must fit
        """
        if isinstance(self.app, Wizard):
            self.app._drawn = None  # draw everything, whatever was drawn before
            await self.app.tick()
        drawn, name = await self._settled(), f"{name}-{self.size}-{self.app.theme}.svg"
        case = (self.size, self.app.theme)
        if case in TO_LOOK_AT:
            self._show(name, drawn)
        if compared and (case in COMPARED or case not in TO_LOOK_AT):
            self._compare(name, drawn)
        if is_ours:
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
        assert not self.problems, "screens changed (run `make snapshots` if that is intended):\n" + "\n".join(
            self.problems
        )


def first_difference(path: Path, drawn: str) -> str:
    """The first line of text that differs between two pictures; their styles if the texts are equal."""
    if not path.exists():
        return "  this picture does not exist yet"
    before, now = words_of(path.read_text(encoding="utf-8")), words_of(drawn)
    for one, other in zip(before, now, strict=False):
        if one != other:
            return f"  was: {one}\n  is:  {other}"
    return f"  the same words in other colours or positions ({len(before)} and {len(now)} pieces)"


def words_of(svg: str) -> list[str]:
    return [re.sub(r"&#160;", " ", piece) for piece in re.findall(r">([^<>\n]+)</text>", svg)]


def what_does_not_fit(app: App[Any]) -> list[str]:
    """Widgets that extend beyond the screen, or beyond a parent that does not scroll horizontally."""
    problems = []
    for widget in app.screen.walk_children():
        parent = widget.parent
        if not widget.display or not widget.region or widget.region.right <= parent.region.right:
            continue
        if parent.styles.overflow_x == "hidden" or not parent.max_scroll_x:
            problems.append(f"{widget!r} ends in column {widget.region.right}, {parent!r} in {parent.region.right}")
    return problems
