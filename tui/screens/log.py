"""The log: messages of the run, or the end of run.log; find, filter by level, follow, copy a line, go to its stage."""

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
from engine.run.state import RunState
from tui.app_protocol import wizard_of
from tui.formatting import one_line, plural, safe_text
from tui.keys import bindings
from tui.runs.run_source import RunSource
from tui.screens.dialogs import Dialog
from tui.screens.log_lines import LEVEL_WORDS, LEVELS, LogLine, file_rows, message_rows, tail_of
from tui.widgets.layout import fit, paragraph
from tui.widgets.marks import LEVEL_MARKS, UNKNOWN
from tui.widgets.row_list import RowList
from tui.widgets.text_view import TextView, clickable

LOOK_SECONDS = 1.0
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
    """The lines that pass the filter, with a cursor; new ones are followed while the cursor is on the last."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("log")
    PLACE = "log"

    class Asked(Message):
        """A key of the log was pressed."""

        def __init__(self, what: str, by: int = 0) -> None:
            super().__init__()
            self.what, self.by = what, by

    def __init__(self) -> None:
        super().__init__(id="log-rows")
        self.lines: list[LogLine] = []
        self.level = LEVELS[0]
        self.sought = ""
        self._all: list[LogLine] = []

    # -- what is in it ------------------------------------------------------------------------------------------------

    def put(self, lines: list[LogLine], *, anew: bool = False) -> None:
        """Show these lines. The cursor stays on its line, or at the end if it was there; `anew`: show another log from its end."""
        if lines == self._all and not anew:
            return
        at_end, held = anew or self.follows, self.line
        self._all = lines
        self._filter(at_end, held)

    def filter_level(self, level: str) -> None:
        at_end, held = self.follows, self.line
        self.level = level
        self._filter(at_end, held)

    def _filter(self, at_end: bool, held: LogLine | None) -> None:
        self.lines = [line for line in self._all if line.passes(self.level)]
        if at_end or held not in self.lines:
            self.rows_changed(len(self.lines) - 1)
        else:
            self.rows_changed(
                min(range(len(self.lines)), key=lambda at: (self.lines[at] != held, abs(at - self.cursor)))
            )

    @property
    def follows(self) -> bool:
        return self.cursor >= len(self.lines) - 1

    @property
    def line(self) -> LogLine | None:
        return self.lines[self.cursor] if self.lines else None

    @property
    def matches(self) -> list[int]:
        """The rows with a match."""
        wanted = self.sought.lower()
        return [at for at, line in enumerate(self.lines) if wanted in line.whole.lower()] if wanted else []

    def seek(self, text: str) -> None:
        """Search: the cursor goes to the nearest match at or before it, else to the last."""
        self.sought = text
        found = self.matches
        if found:
            self.cursor = max((at for at in found if at <= self.cursor), default=found[-1])
        self.refresh()

    def next_match(self, by: int) -> None:
        found = self.matches
        if found:
            beyond = [at for at in found if (at > self.cursor if by > 0 else at < self.cursor)]
            around = found[0] if by > 0 else found[-1]
            self.cursor = (beyond[0] if by > 0 else beyond[-1]) if beyond else around

    # -- drawing ------------------------------------------------------------------------------------------------------

    @property
    def shown(self) -> int:
        return len(self.lines)

    def nothing(self) -> str:
        return "Nothing yet." if not self._all else f"No line is among {LEVEL_WORDS[self.level]}; e shows others."

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
        at = text.plain.lower().find(self.sought.lower()) if self.sought else -1
        return text.stylize("reverse", at, at + len(self.sought)) if at >= 0 else text

    # -- keys: the screen around it does what they ask ----------------------------------------------------------------

    def action_find(self) -> None:
        self.post_message(self.Asked("find"))

    def action_match(self, by: int) -> None:
        self.post_message(self.Asked("match", by))

    def action_level(self) -> None:
        self.post_message(self.Asked("level"))

    def action_follow(self) -> None:
        self.post_message(self.Asked("follow"))

    def action_copy_line(self) -> None:
        self.post_message(self.Asked("copy"))

    def action_other_log(self) -> None:
        self.post_message(self.Asked("other"))


class LogScreen(Dialog[str | None]):
    """Gives the stage to go to, if a line's stage was asked for."""

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
        self.query_one("#log-keys", TextView).put("keys", key_line)
        self.look(anew=True)
        self.set_interval(LOOK_SECONDS, self.look)
        self.rows.focus()

    def look(self, *, anew: bool = False) -> None:
        state = self._source.snapshot()
        if self._view == VIEWS[0]:
            self.rows.put(message_rows(state), anew=anew)
        else:
            read = (tail_of(self._source.run / layout.RUN_LOG), state)
            if anew or self._read != read:
                self._read = read
                self.rows.put(file_rows(*read), anew=anew)
        self._draw()

    def _draw(self) -> None:
        rows, view = self.rows, self._view
        found = rows.matches
        place = (
            f"{found.index(rows.cursor) + 1} of {len(found)}"
            if rows.cursor in found
            else plural(len(found), "match", "matches")
        )
        told = [f"“{rows.sought}”: {place}"] if rows.sought else []
        told += [plural(rows.shown, "line"), LEVEL_WORDS[rows.level]]
        told += ["follows new lines"] if rows.follows else ["f follows"]
        self.query_one("#log-head", TextView).put((view, *told), lambda width: [head_line(view, told, width)])
        line = rows.line
        self.query_one("#log-line", TextView).put(
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
            wizard_of(self).notify_user("This line belongs to no stage.")

    @on(LogRows.Asked)
    def _asked(self, event: LogRows.Asked) -> None:
        rows = self.rows
        match event.what:
            case "find":
                self.query_one(Input).display = True
                self.query_one(Input).focus()
            case "match":
                rows.next_match(event.by)
            case "level":
                rows.filter_level(LEVELS[(LEVELS.index(rows.level) + 1) % len(LEVELS)])
            case "follow":
                rows.cursor = rows.shown
            case "copy" if rows.line is not None:
                wizard_of(self).copy(rows.line.whole, "the line")
            case "other":
                self._view = VIEWS[1 - VIEWS.index(self._view)]
                self.look(anew=True)
        self._draw()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.rows.seek(event.value)
        self._draw()

    @on(Input.Submitted)
    def _found(self, event: Input.Submitted) -> None:
        event.stop()
        self._close_find()

    def _close_find(self) -> None:
        self.query_one(Input).display = bool(self.rows.sought)
        self.rows.focus()

    def action_press(self, keys: str) -> None:
        """A click on a key presses it."""
        self.rows.focus()
        self.app.simulate_key(keys)

    def action_dismiss_window(self) -> None:
        """Esc: out of the field first."""
        if self.query_one(Input).has_focus:
            self.rows.seek("")
            self.query_one(Input).value = ""
            self._close_find()
            self._draw()
        else:
            self.dismiss(None)


def head_line(view: str, told: list[str], width: int) -> Content:
    titles = [
        clickable(Content.styled(f" {title} ", "bold reverse" if title == view else "$muted"), "screen.press('v')")
        if title != view
        else Content.styled(f" {title} ", "bold $heading")
        for title in VIEWS
    ]
    return fit(Content("  ").join(titles) + Content("   ") + one_line(" · ".join(told), "$muted"), width)


def key_line(width: int) -> list[Content]:
    keys = [
        clickable(Content.assemble((shown, "bold $key"), (f" {does}", "$muted")), f"screen.press('{key}')")
        for key, shown, does in HINTS
    ]
    return [fit(Content("  ").join(keys), width)]


def detail(line: LogLine, width: int) -> list[Content]:
    """The line under the cursor, wrapped: the list cuts long ones."""
    mark = LEVEL_MARKS.get(line.level, UNKNOWN)
    lines = paragraph(safe_text(line.text, "$foreground", 1_000), width)[:DETAIL_LINES]
    head = Content.styled("─" * width, "$rule")
    return (
        [head, *lines]
        if line.level not in ("warning", "error")
        else [head, *(one.stylize(mark.style) for one in lines)]
    )
