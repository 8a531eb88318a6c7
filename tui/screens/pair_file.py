"""The screen of `stage3-tui browse FILE`: the pair browser alone, without a run."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Static

from engine.run.state import RunState
from engine.security.sanitize import visible_line
from tui.formatting import short_path
from tui.keys import Key
from tui.pair_browser.browser import PairBrowser
from tui.runs.pair_file import PairFile
from tui.screens.base import StageView
from tui.screens.main import MainScreen
from tui.widgets.layout import SPREAD_GAP, fit, shortened, spread
from tui.widgets.status_lines import keys_line

NEEDS_RUN = {"run_stage", "run_all", "redo", "stop", "log"}
"""Keys of the wizard that need a run."""


MIN_NAME_CELLS = 24
"""Cells of a path to keep on a narrow screen."""


class PairFileScreen(MainScreen, inherit_bindings=False):
    """The title, the browser, the keys."""

    DEFAULT_CSS = "PairFileScreen PairBrowser { padding: 0 1; }"

    def __init__(self, source: PairFile) -> None:
        super().__init__(source, "quality")
        self.file = source

    def compose(self) -> ComposeResult:
        yield Static(id="too-small", markup=False)
        yield self.title_view
        with self.body:
            yield PairBrowser(self.file)
        yield self.status_view
        yield self.keys_view

    def on_mount(self) -> None:
        self.query_one(PairBrowser).pairs.focus()

    @property
    def is_ready(self) -> bool:
        return self.is_mounted and all(
            part.is_attached for part in (self.title_view, self.body, self.status_view, self.keys_view)
        )

    @property
    def view(self) -> StageView | None:
        """No stage is shown."""
        return None

    def places(self) -> tuple[str, ...]:
        return tuple(place for place in super().places() if place != "stage")

    def keys_offered(self) -> tuple[Key, ...]:
        return tuple(key for key in super().keys_offered() if key.action not in NEEDS_RUN)

    async def draw(self, state: RunState, status_note: str, now: float) -> bool:
        if not self.is_ready:
            return False
        file, problem = visible_line(short_path(self.file.file), 200), visible_line(self.file.problem, 200)
        status = Content.styled(problem, "$check-failed") if problem else Content.styled("no run ", "$muted")
        self.title_view.update((file, problem), lambda width: [title_line(file, status, width)])
        edits = visible_line(short_path(self.file.edits), 200)
        self.status_view.update(edits, lambda width: [edits_line(edits, width)])
        keys = self.keys_offered()
        self.keys_view.update(keys, lambda width: [keys_line(keys, width)])
        return True


def title_line(file: str, status: Content, width: int) -> Content:
    """The title; a long path is cut at its start, since it ends with the file's name."""
    title = Content.assemble((" stage3-tui ", "bold $accent"), ("browse ", "bold $foreground"))
    room = max(width - title.cell_length - status.cell_length - SPREAD_GAP, MIN_NAME_CELLS)
    return spread(title + shortened(Content.styled(file, "bold $foreground"), room), status, width)


def edits_line(edits: str, width: int) -> Content:
    label = Content.styled(" Decisions go to ", "$muted")
    room = max(width - label.cell_length, MIN_NAME_CELLS)
    return fit(label + shortened(Content.styled(edits, "$muted"), room), width)
