"""Choose one of several runs before any of them is locked. A separate application."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from engine.run.listing import RunSummary, State, find_runs
from tui.formatting import memory, one_line, short_path
from tui.widgets.layout import fit
from tui.widgets.row_list import RowList
from tui.widgets.text_view import TextView, clickable
from tui.wizard.themed_app import ThemedApp

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

DEPTH = 2
"""Levels of folders to search for runs beside --output-dir, so that a home folder is not searched completely."""
WIDE = 140
"""Minimum cells to show model, trials and size, too, with enough room for the name."""
STYLES: dict[State, str] = {
    "running": "$stage-running", "done": "$stage-done", "failed": "$stage-failed", "refused": "$stage-refused",
    "damaged": "$stage-failed", "stopped": "$stage-stopped", "interrupted": "$stage-stopped", "unfinished": "$foreground",
}  # fmt: skip
VERDICT_STYLES = {"better": "$check-ok", "worse": "$check-failed"}


def choose_run(config: Stage3Config) -> Path | None:
    """The run folder that the user chooses among those beside `--output-dir`. `--output-dir` itself if there are fewer than
    two; None if the user left.
    """
    search_root = config.output_dir.expanduser().resolve().parent
    found = find_runs(search_root, DEPTH) if search_root.is_dir() else []
    if len(found) < 2:
        return config.output_dir
    return RunChooser(config, search_root, found).run(mouse=config.mouse)


class RunRows(RowList):
    """One run per line; the last line is a new run, unless `--output-dir` names one of them."""

    def __init__(self, search_root: Path, runs: Sequence[RunSummary], new: Path | None) -> None:
        super().__init__(id="runs")
        self._search_root, self._runs, self._new = search_root, runs, new
        self._marked: set[Path] = set()

    @property
    def marked(self) -> tuple[Path, ...]:
        return tuple(run.folder for run in self._runs if run.folder in self._marked)

    def mark(self) -> None:
        """Mark the run under the cursor, or remove its mark, and go to the next one."""
        if self.cursor < len(self._runs):
            self._marked ^= {self._runs[self.cursor].folder}
            self.cursor += 1
            self.refresh()

    @property
    def row_count(self) -> int:
        return len(self._runs) + (self._new is not None)

    def folder_at(self, index: int) -> Path:
        if index < len(self._runs):
            return self._runs[index].folder
        assert self._new is not None
        return self._new

    def index_of(self, folder: Path) -> int:
        folders = [self.folder_at(index) for index in range(self.row_count)]
        return folders.index(folder) if folder in folders else 0

    def row_content(self, index: int, width: int) -> Content:
        if index == len(self._runs):
            return Content.assemble(("   a new run in ", "$muted"), one_line(self.folder_at(index).name, "bold", 60))
        mark = Content.styled("● " if self._runs[index].folder in self._marked else "  ", "$accent")
        return mark + run_row(self._runs[index], self._search_root, width - 2)


def run_row(run: RunSummary, search_root: Path, width: int) -> Content:
    """A run's name, time, pairs, verdict and state; if there is room, also model, trials and size."""
    when = "" if run.when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.when))
    cells = [
        fit(Content.styled(when, "$muted"), 16),
        fit(Content.styled("" if run.pairs is None else f"{run.pairs:,} pairs"), 11, right=True),
        fit(one_line(run.verdict, VERDICT_STYLES.get(run.verdict, "$foreground"), 12), 12),
        fit(Content.styled(run.state_label, STYLES[run.state]), 20 if width < WIDE else 24),
    ]
    if width >= WIDE:
        trials = f"{len(run.trials)} trials" if run.trials else ""
        cells[1:1] = [fit(one_line(run.model, "$foreground", 20), 20)]
        cells += [
            fit(Content.styled(trials, "$muted"), 10),
            fit(Content.styled(memory(run.bytes), "$muted"), 10, right=True),
        ]
    name = one_line(run.folder.relative_to(search_root), "bold", 80)
    room = width - sum(cell.cell_length + 1 for cell in cells) - 2
    return Content(" ") + Content(" ").join([fit(name, max(room, 8)), *cells])


class RunChooser(ThemedApp[Path]):
    TITLE = "stage3-tui"
    CSS = """
    Screen { background: $background; }
    #head, #keys { height: auto; padding: 0 1; }
    #head { padding: 1 1; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,escape,ctrl+c", "leave", "leave", show=False),
        Binding("x", "mark", "mark", show=False),
        Binding("c", "compare", "compare", show=False),
    ]

    def __init__(self, config: Stage3Config, search_root: Path, runs: Sequence[RunSummary]) -> None:
        super().__init__(config)
        self._own = config.output_dir.expanduser().resolve()
        self._search_root, self._runs = search_root, runs
        self._new = None if any(run.folder == self._own for run in runs) else self._own

    def compose(self) -> ComposeResult:
        yield TextView(id="head")
        yield RunRows(self._search_root, self._runs, self._new)
        yield TextView(id="keys")

    def on_mount(self) -> None:
        self.apply_first_theme()
        heading = Content.assemble(
            ("Which run?", "bold $heading"),
            (f"   {len(self._runs)} in ", "$muted"),
            one_line(short_path(self._search_root)),
        )
        self.query_one("#head", TextView).update("head", lambda width: [heading.truncate(width, ellipsis=True)])
        self.query_one("#keys", TextView).update("keys", lambda width: [KEYS.truncate(width, ellipsis=True)])
        rows = self.query_one(RunRows)
        rows.focus()
        rows.rows_changed(0 if self._new is not None else rows.index_of(self._own))

    @on(RunRows.Opened)
    def _opened(self, event: RunRows.Opened) -> None:
        rows = self.query_one(RunRows)
        self.exit(rows.folder_at(rows.cursor))

    def action_mark(self) -> None:
        self.query_one(RunRows).mark()

    def action_compare(self) -> None:
        """Compare the marked runs or, if none is marked, all that have a verdict."""
        from tui.screens.compare import CompareScreen

        rows = self.query_one(RunRows)
        chosen = rows.marked or tuple(run.folder for run in self._runs if run.verdict)
        if len(chosen) < 2:
            self.notify("Mark at least two runs with x to compare them.")
        else:
            self.push_screen(CompareScreen(chosen))

    def action_leave(self) -> None:
        self.exit(None)


def _hint(key: str, word: str, action: str = "") -> Content:
    hint = Content.assemble((key, "bold $key"), (f" {word}  ", "$muted"))
    return clickable(hint, f"app.{action}") if action else hint


KEYS = Content("").join(
    [
        _hint("j k", "move"), _hint("Enter", "opens"), _hint("x", "marks", "mark"),
        _hint("c", "compares", "compare"), _hint("q", "quits", "leave"),
    ]
)  # fmt: skip
