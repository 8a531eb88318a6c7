"""Stage 1: before the run starts, its ingredients and what is missing; then the working folder and the disk space."""

from __future__ import annotations

import shutil
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from engine.pipeline.ingredients import Access, StartOverview, query_hub, start_overview
from engine.run.folder import Run
from engine.run.state import RunState, StageState
from tui.formatting import memory
from tui.runs.run_source import RunSource
from tui.screens.base import OWNED_BY_ANOTHER, StageView, done_stages
from tui.screens.start import StartEditor
from tui.widgets.gauge import memory_bar
from tui.widgets.layout import EMPTY

DISK_SECONDS = 5


class WorkspaceView(StageView):
    STAGE = "workspace"
    START, OVERVIEW = OWN_PAGES = ("Start", "Overview")
    BARE_PAGES = (START, StageView.OPTIONS)

    _disk_key: tuple[float, float] | None = None
    """The time and the forecast for which disk usage was last read."""
    _examined: object = None
    """The configuration and the stages' states for which the ingredients were last examined."""

    def __init__(self, source: RunSource) -> None:
        super().__init__(source)
        self._access: tuple[object, Access] = (None, {})
        """The configuration, and the Hub's response about it."""

    # -- the start ----------------------------------------------------------------------------------------------------

    def compose_page(self, page: str) -> ComposeResult:
        if page == self.START:
            yield StartEditor(self.source.config, id="start")
        else:
            yield from super().compose_page(page)

    def page_container(self, page: str) -> Widget:
        if page != self.START:
            return super().page_container(page)
        container = Vertical(id=f"page-{page.lower()}", classes="page")
        container.display = page == self.page
        return container

    def page_for(self, state: RunState) -> str:
        return self.START if state.stages[self.STAGE].status == "waiting" else self.OVERVIEW

    def focus_page(self) -> None:
        if self.page == self.START:
            self.query_one(StartEditor).rows.focus()
        else:
            super().focus_page()

    def step_back(self) -> bool:
        if self.page == self.START and self.is_built(self.page):
            return self.query_one(StartEditor).step_back()
        return super().step_back()

    def _draw_start(self, state: RunState) -> None:
        read_only_reason = OWNED_BY_ANOTHER if self.source.read_only else ""
        editor = self.query_one(StartEditor)
        editor.update(self.source.config, read_only_reason, done_stages(state))
        if self._examined is None and self.screen.focused is None and not self.source.running:
            editor.rows.focus()  # so that Enter changes the line under the cursor from the start
        key = (self.source.config, tuple(stage.status for stage in state.stages.values()))
        if key != self._examined:
            self._examined = key
            self._examine()

    def _examine(self) -> None:
        source, access = self.source, self._access[1] if self._access[0] == self.source.config else {}
        config, folder, token = source.config, source.run.folder, source.token
        self.run_worker(
            lambda: start_overview(config, Run(folder), token=token, access=access),
            name="beginning", thread=True, exclusive=True, exit_on_error=False, group="start",
        )  # fmt: skip

    def _ask_hub(self) -> None:
        source = self.source
        config, folder, token = source.config, source.run.folder, source.token
        self.run_worker(
            lambda: (config, query_hub(config, Run(folder), token)),
            name="access", thread=True, exclusive=True, exit_on_error=False, group="ask", description="asks the Hub",
        )  # fmt: skip

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.state is not WorkerState.SUCCESS:
            return
        if event.worker.name == "beginning":
            found: StartOverview = event.worker.result  # type: ignore[assignment]
            self.query_one(StartEditor).show_findings(found)
            if self.source.may_query_hub and self._access[0] != self.source.config:
                self._ask_hub()
        elif event.worker.name == "access":
            self._access = event.worker.result  # type: ignore[assignment]
            if self._access[1]:
                self._examine()

    # -- the stage's result -------------------------------------------------------------------------------------------

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        if self.page == self.START:
            self._draw_start(state)
            return
        needed = state.forecast.disk_bytes if state.forecast is not None else 0.0
        if (now // DISK_SECONDS, needed) != self._disk_key:
            self._disk_key = (now // DISK_SECONDS, needed)
            usage = disk_usage(self.source.run.folder)
            key = None if usage is None else (round(usage[0], -7), usage[1], needed)
            self.text_view("extra").update(
                key, (lambda width: disk_lines(*usage, needed, width)) if usage is not None else None
            )


def disk_usage(folder: Path) -> tuple[float, float] | None:
    """(used, total) bytes of the disk that holds, or will hold, `folder`; None if unknown."""
    for place in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(place)
        except OSError:  # the folder does not exist yet: use its parent
            continue
        return float(usage.total - usage.free), float(usage.total)
    return None


def disk_lines(used: float, total: float, needed: float, width: int) -> list[Content]:
    """Disk usage, with preflight's forecast if there is one."""
    needs = f"   the run needs about {memory(needed)}" if needed else ""
    free = Content.assemble((f"  {memory(total - used)} free", "bold"), (f" of {memory(total)}{needs}", "$muted"))
    label = Content.styled("Disk  ", "$muted")
    room = min(max(width - free.cell_length - label.cell_length, 10), 60)
    return [EMPTY, label + memory_bar(used, total, room, forecast=used + needed if needed else None) + free]
