"""The one screen: title, rail, the stage that is looked at, the machine, the keys."""

from __future__ import annotations

import platform

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from engine.state import RunState
from tui.keys import Key
from tui.screens.adapter import AdapterView
from tui.screens.base import StageView
from tui.screens.credentials import CredentialsView
from tui.screens.dependencies import DependenciesView
from tui.screens.packaging import PackagingView
from tui.screens.pairs import PairsView
from tui.screens.preflight import PreflightView
from tui.screens.quality import QualityView
from tui.screens.toolchain import ToolchainView
from tui.screens.training import TrainingView
from tui.screens.workspace import WorkspaceView
from tui.source import RunSource
from tui.widgets.bars import keys_line, status_line, title_line
from tui.widgets.paper import Paper
from tui.widgets.rail import Rail
from tui.widgets.words import duration

VIEWS: dict[str, type[StageView]] = {
    view.STAGE: view
    for view in (
        WorkspaceView,
        ToolchainView,
        CredentialsView,
        DependenciesView,
        AdapterView,
        PreflightView,
        PairsView,
        QualityView,
        TrainingView,
        PackagingView,
    )
}

LEAST_COLUMNS, LEAST_ROWS = 80, 24


class MainScreen(Screen[None]):
    """Views are made when they are first looked at, and kept."""

    # Keys are the wizard's until somebody goes to a field: the first key pressed must not end up in the token.
    AUTO_FOCUS = ""

    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (100, "-wide"), (150, "-very-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    def __init__(self, source: RunSource, first: str) -> None:
        super().__init__(id="main")
        self.source = source
        self.selected = first
        self._views: dict[str, StageView] = {first: VIEWS[first](source)}

    def compose(self) -> ComposeResult:
        yield Static(id="too-small", markup=False)
        yield Paper(id="title")
        with Container(id="middle"):
            yield Rail(id="rail")
            with Container(id="body"):
                yield self._views[self.selected]
        yield Paper(id="status")
        yield Paper(id="keys")

    @property
    def is_whole(self) -> bool:
        """Whether all its parts are there: not before it is put together, and not while it is taken apart."""
        parts = ("#title", "#rail", "#body", "#status", "#keys")
        there = self.is_mounted and all(part.is_attached for name in parts for part in self.query(name))
        return there and all(self.query(name) for name in parts) and (self.view is None or self.view.is_whole)

    async def show_stage(self, stage: str) -> None:
        self.selected = stage
        for name, view in self._views.items():
            view.display = name == stage
        if stage not in self._views:
            self._views[stage] = VIEWS[stage](self.source)
            await self.query_one("#body").mount(self._views[stage])
        self.set_focus(None)

    @property
    def view(self) -> StageView | None:
        """The view of the stage that is looked at; None before it is mounted."""
        view = self._views.get(self.selected)
        return view if view is not None and view.is_mounted else None

    def draw(self, state: RunState, standing: str, keys: tuple[Key, ...], now: float) -> None:
        folder = self.source.run.folder
        current = state.current
        key = (
            standing,
            state.finished,
            state.running,
            current,
            duration(now - (current.started or now)) if current else "",
        )
        self.query_one("#title", Paper).put(key, lambda width: [title_line(state, folder.name, standing, now, width)])
        self.query_one(Rail).put(state, self.selected, now)
        self.query_one("#status", Paper).put(
            state.telemetry[-1:], lambda width: [status_line(state, platform.node(), str(folder), width)]
        )
        self.query_one("#keys", Paper).put(keys, lambda width: [keys_line(keys, width)])
        if self.view is not None:
            self.view.draw(state, now)

    def on_resize(self, event: events.Resize) -> None:
        size = event.size
        too_small = size.width < LEAST_COLUMNS or size.height < LEAST_ROWS
        self.set_class(too_small, "-too-small")
        self.query_one("#too-small", Static).update(
            Content(
                f"This terminal has {size.width} columns and {size.height} rows; "
                f"the wizard needs {LEAST_COLUMNS} and {LEAST_ROWS}. "
                "Make it larger, or use `stage3-tui status` and `stage3-tui --auto`. What runs goes on; q quits."
            )
        )
