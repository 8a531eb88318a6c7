"""The log: messages of the run, or the end of run.log. Search it, filter by level, follow new lines, copy a line, or go to
its stage.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from engine.core import layout
from engine.core.wording import plural
from engine.run.state import RunState
from tui.app_protocol import wizard_of
from tui.formatting import one_line, safe_text
from tui.keys import bindings
from tui.runs.run_source import RunSource
from tui.screens.dialogs import Dialog
from tui.screens.log_lines import LEVEL_WORDS, LEVELS, LogLine, file_rows, message_rows, tail_of
from tui.widgets.layout import fit, paragraph
from tui.widgets.marks import LEVEL_MARKS, UNKNOWN
from tui.widgets.row_list import RowList
from tui.widgets.text_view import TextView, clickable

POLL_SECONDS = 1.0
DETAIL_LINES = 4
VIEWS = ("Messages", "run.log")
HINTS = (
    ("slash", "/", "find"),
    ("e", "e", "level"),
    ("f", "f", "follow"),
    ("c", "c", "copy"),
    ("enter", "Enter", "its stage"),
    ("v", "v", "other log"),
    ("escape", "Esc", "close"),
)


class LogRows(RowList):
    """The lines that pass the filter. While the cursor is on the last line, it follows new ones."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("log")
    PLACE = "log"

    class Requested(Message):
        """A key of the log was pressed."""

        def __init__(self, command: str, by: int = 0) -> None:
            super().__init__()
            self.command, self.by = command, by

    def __init__(self) -> None:
        super().__init__(id="log-rows")
        self.lines: list[LogLine] = []
        self.level = LEVELS[0]
        self.search_text = ""
        self._all: list[LogLine] = []

    # -- lines --------------------------------------------------------------------------------------------------------

    def update(self, lines: list[LogLine], *, from_end: bool = False) -> None:
        """Show these lines. The cursor stays on its line, or at the end if it was there or `from_end` is set."""
        if lines == self._all and not from_end:
            return
        at_end, current = from_end or self.follows, self.line
        self._all = lines
        self._filter(at_end, current)

    def filter_level(self, level: str) -> None:
        at_end, current = self.follows, self.line
        self.level = level
        self._filter(at_end, current)

    def _filter(self, at_end: bool, current: LogLine | None) -> None:
        self.lines = [line for line in self._all if line.passes(self.level)]
        if at_end or current not in self.lines:
            self.rows_changed(len(self.lines) - 1)
        else:
            self.rows_changed(
                min(range(len(self.lines)), key=lambda at: (self.lines[at] != current, abs(at - self.cursor)))
            )

    @property
    def follows(self) -> bool:
        return self.cursor >= len(self.lines) - 1

    @property
    def line(self) -> LogLine | None:
        return self.lines[self.cursor] if self.lines else None

    @property
    def matches(self) -> list[int]:
        """The numbers of the rows with a match."""
        text = self.search_text.lower()
        return [at for at, line in enumerate(self.lines) if text in line.full_text.lower()] if text else []

    def search(self, text: str) -> None:
        """Search for a text: the cursor goes to the nearest match at or before it, else to the last match."""
        self.search_text = text
        found = self.matches
        if found:
            self.cursor = max((at for at in found if at <= self.cursor), default=found[-1])
        self.refresh()

    def next_match(self, by: int) -> None:
        found = self.matches
        if found:
            ahead = [at for at in found if (at > self.cursor if by > 0 else at < self.cursor)]
            wrapped = found[0] if by > 0 else found[-1]
            self.cursor = (ahead[0] if by > 0 else ahead[-1]) if ahead else wrapped

    # -- drawing ------------------------------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        return len(self.lines)

    def empty_text(self) -> str:
        return "No lines yet." if not self._all else f"No {LEVEL_WORDS[self.level]}; e shows other lines."

    def row_content(self, index: int, width: int) -> Content:
        line = self.lines[index]
        mark = LEVEL_MARKS.get(line.level, UNKNOWN)
        loud = line.level in ("warning", "error", "critical")
        text = one_line(line.text, mark.style if loud else "$foreground", 600)
        head = Content.assemble(
            (f"{line.clock:8} ", "$muted"), (f"{mark.glyph} ", mark.style), (f"{line.stage:12} ", "$muted")
        )
        return head + self._marked(text)

    def _marked(self, text: Content) -> Content:
        at = text.plain.lower().find(self.search_text.lower()) if self.search_text else -1
        return text.stylize("reverse", at, at + len(self.search_text)) if at >= 0 else text

    # -- keys: the screen handles the requests ------------------------------------------------------------------------

    def action_find(self) -> None:
        self.post_message(self.Requested("find"))

    def action_match(self, by: int) -> None:
        self.post_message(self.Requested("match", by))

    def action_level(self) -> None:
        self.post_message(self.Requested("level"))

    def action_follow(self) -> None:
        self.post_message(self.Requested("follow"))

    def action_copy_line(self) -> None:
        self.post_message(self.Requested("copy"))

    def action_other_log(self) -> None:
        self.post_message(self.Requested("other"))


class LogScreen(Dialog[str | None]):
    """Returns the stage to go to if the user opened a line, else None."""

    CLOSED_BY = ("l", "q")

    def __init__(self, source: RunSource) -> None:
        super().__init__()
        self._source = source
        self._view = VIEWS[0]
        self._read: tuple[str, RunState] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="window -large", id="log"):
            yield TextView(id="log-head")
            yield LogRows()
            yield TextView(id="log-line")
            yield Input(placeholder="find", id="log-find", compact=True)
            yield TextView(id="log-keys")

    @property
    def rows(self) -> LogRows:
        return self.query_one(LogRows)

    def on_mount(self) -> None:
        self.query_one("#log-find").display = False
        self.query_one("#log-keys", TextView).update("keys", key_line)
        self.poll(from_end=True)
        self.set_interval(POLL_SECONDS, self.poll)
        self.rows.focus()

    def poll(self, *, from_end: bool = False) -> None:
        state = self._source.snapshot()
        if self._view == VIEWS[0]:
            self.rows.update(message_rows(state), from_end=from_end)
        else:
            read = (tail_of(self._source.run / layout.RUN_LOG), state)
            if from_end or self._read != read:
                self._read = read
                self.rows.update(file_rows(*read), from_end=from_end)
        self._draw()

    def _draw(self) -> None:
        rows, view = self.rows, self._view
        found = rows.matches
        place = (
            f"{found.index(rows.cursor) + 1} of {len(found)}"
            if rows.cursor in found
            else plural(len(found), "match", "matches")
        )
        notes = [f"“{rows.search_text}”: {place}"] if rows.search_text else []
        notes += [plural(rows.row_count, "line"), LEVEL_WORDS[rows.level]]
        notes += ["follows new lines"] if rows.follows else ["f follows"]
        self.query_one("#log-head", TextView).update((view, *notes), lambda width: [head_line(view, notes, width)])
        line = rows.line
        self.query_one("#log-line", TextView).update(
            line, (lambda width: detail(line, width)) if line is not None else None
        )

    # -- keys and clicks ----------------------------------------------------------------------------------------------

    @on(RowList.Moved)
    def _moved(self) -> None:
        self._draw()

    @on(RowList.Opened)
    def _opened(self) -> None:
        line = self.rows.line
        if line is not None and line.stage:
            self.dismiss(line.stage)
        else:
            wizard_of(self).notify_user("This line does not belong to a stage.")

    @on(LogRows.Requested)
    def _requested(self, event: LogRows.Requested) -> None:
        rows = self.rows
        match event.command:
            case "find":
                self.query_one(Input).display = True
                self.query_one(Input).focus()
            case "match":
                rows.next_match(event.by)
            case "level":
                rows.filter_level(LEVELS[(LEVELS.index(rows.level) + 1) % len(LEVELS)])
            case "follow":
                rows.cursor = rows.row_count
            case "copy" if rows.line is not None:
                wizard_of(self).copy(rows.line.full_text, "the line")
            case "other":
                self._view = VIEWS[1 - VIEWS.index(self._view)]
                self.poll(from_end=True)
        self._draw()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.rows.search(event.value)
        self._draw()

    @on(Input.Submitted)
    def _found(self, event: Input.Submitted) -> None:
        event.stop()
        self._close_find()

    def _close_find(self) -> None:
        self.query_one(Input).display = bool(self.rows.search_text)
        self.rows.focus()

    def action_press(self, keys: str) -> None:
        """A click on a key presses it."""
        self.rows.focus()
        self.app.simulate_key(keys)

    def action_dismiss_window(self) -> None:
        """Esc: leave the search field first, then close the log."""
        if self.query_one(Input).has_focus:
            self.rows.search("")
            self.query_one(Input).value = ""
            self._close_find()
            self._draw()
        else:
            self.dismiss(None)


def head_line(view: str, notes: list[str], width: int) -> Content:
    titles = [
        clickable(Content.styled(f" {title} ", "bold reverse" if title == view else "$muted"), "screen.press('v')")
        if title != view
        else Content.styled(f" {title} ", "bold $heading")
        for title in VIEWS
    ]
    return fit(Content("  ").join(titles) + Content("   ") + one_line(" · ".join(notes), "$muted"), width)


def key_line(width: int) -> list[Content]:
    keys = [
        clickable(Content.assemble((shown, "bold $key"), (f" {label}", "$muted")), f"screen.press('{key}')")
        for key, shown, label in HINTS
    ]
    return [fit(Content("  ").join(keys), width)]


def detail(line: LogLine, width: int) -> list[Content]:
    """The line under the cursor, wrapped, because the list cuts long lines."""
    mark = LEVEL_MARKS.get(line.level, UNKNOWN)
    lines = paragraph(safe_text(line.text, "$foreground", 1_000), width)[:DETAIL_LINES]
    head = Content.styled("─" * width, "$rule")
    return (
        [head, *lines]
        if line.level not in ("warning", "error")
        else [head, *(one.stylize(mark.style) for one in lines)]
    )
