"""The wizard without a working engine: sessions that wait, and the text on a screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag

import pytest
from textual.pilot import Pilot

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode
from engine.core.events import Progress, RunFinished, RunStarted, StageFinished, StageStarted
from engine.core.stage_table import STAGES
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Entry
from tests.support.made_up_run import make_run
from tui.runs.runner import Runner
from tui.wizard.app import Wizard


class FakeSession:
    """Reports that its stages start, and stays in the last one until stopped or released."""

    def __init__(self, context: Context, listener: Callable[[Entry], None]) -> None:
        self.context, self.listener = context, listener
        self.seq = 10_000
        self.calls: list[tuple[str, str | None]] = []
        self.released = Flag()
        self.closed = False

    def run(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> ExitCode:
        self.calls.append((until, redo_from))
        self._emit(RunStarted("folder", "0", 1, "h", "", STAGES))
        self._emit(StageStarted(until))
        while not self.released.wait(0.01):
            self._emit(Progress(1, 10, "things", stage=until))
            if self.context.stop.requested:
                self._emit(StageFinished(until, "stopped", "The run was stopped.", what="stopped", exit_code=143))
                self._emit(RunFinished(143, "stopped"))
                return ExitCode.TERMINATED
        self._emit(StageFinished(until, "done", "All is well."))
        self._emit(RunFinished(0, "All is well."))
        return ExitCode.DONE

    def close(self) -> None:
        self.closed = True

    def _emit(self, event: object) -> None:
        self.seq += 1
        self.listener(Entry(self.seq, time.time(), event))


class Sessions:
    """A session factory that records its sessions."""

    def __init__(self, kind: type[FakeSession] = FakeSession) -> None:
        self.made: list[FakeSession] = []
        self._kind = kind

    def __call__(self, context: Context, listener: Callable[[Entry], None]) -> FakeSession:
        self.made.append(self._kind(context, listener))
        return self.made[-1]

    @property
    def last(self) -> FakeSession:
        return self.made[-1]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions()
    yield made
    for session in made.made:
        session.released.set()


@pytest.fixture
def runner(tmp_path: Path, config: Callable[..., Stage3Config], sessions: Sessions) -> Runner:
    """A run that has not started."""
    folder = tmp_path / "run"
    return Runner(config(output_dir=folder), Run(folder), session_factory=sessions)


@pytest.fixture
def finished(tmp_path: Path, config: Callable[..., Stage3Config], sessions: Sessions) -> Runner:
    """A run with all ten stages done."""
    folder = make_run(tmp_path / "run", pairs=40)
    return Runner(config(output_dir=folder), Run(folder), session_factory=sessions)


async def until(pilot: Pilot, holds: Callable[[], object], what: str = "it", seconds: float = 10) -> None:
    """Wait for a condition while the screen keeps running, checking less often as time passes: a check may draw the screen."""
    start = time.monotonic()
    while not holds():
        waited = time.monotonic() - start
        assert waited < seconds, f"{what} did not happen within {seconds:.0f} seconds"
        await pilot.pause(min(0.03 + waited / 20, 0.25))


async def open_stage(pilot: Pilot, app: Wizard, stage: str) -> None:
    """Go to a stage by its digit and wait until it is drawn."""
    await pilot.press(str((STAGES.index(stage) + 1) % 10))
    await until(pilot, lambda: app.main.selected == stage and app.main.is_ready, stage)
    await pilot.pause()


async def turn_to(pilot: Pilot, app: Wizard, page: str) -> None:
    """Go to a view of the stage by its key."""
    for _ in app.main.view.pages:
        if app.main.view.page == page:
            break
        await pilot.press("v")
        await pilot.pause()
    assert app.main.view.page == page
    await app.tick()
    await pilot.pause()


async def click_on(
    pilot: Pilot, app: Wizard, text: str, then: Callable[[], object], *, rows: range = range(100), seconds: float = 10
) -> None:
    """Click on `text` until the expected result appears, because things move while a run is in progress."""
    end = time.monotonic() + seconds
    while not then():
        assert time.monotonic() < end, f"clicking on {text!r} had no effect; the screen is\n{screen_text(app)}"
        places = [
            (line.index(text), y) for y, line in enumerate(screen_text(app).splitlines()) if text in line and y in rows
        ]
        if places:
            x, y = places[0]
            await pilot.click(offset=(x + len(text) // 2, y))
        await pilot.pause(0.25)


def screen_text(app: Wizard) -> str:
    """The visible text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def is_open(app: Wizard, screen: type) -> bool:
    return isinstance(app.screen, screen)
