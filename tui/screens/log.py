"""The log: messages of the run, and the end of run.log."""

from __future__ import annotations

import os
import time
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content

from engine.core import layout
from engine.core.errors import UnsafeError
from engine.core.reading import open_file
from engine.run.state import RunState
from tui.formatting import one_line, safe_text
from tui.runs.run_source import RunSource
from tui.screens.dialogs import Dialog
from tui.widgets.layout import Column, paragraph, table
from tui.widgets.marks import LEVEL_MARKS, UNKNOWN
from tui.widgets.text_view import TextView

TAIL_BYTES = 48 << 10
LOOK_SECONDS = 1.0


class LogScreen(Dialog[None]):
    CLOSED_BY = ("l", "q")

    def __init__(self, source: RunSource) -> None:
        super().__init__()
        self._source = source

    def compose(self) -> ComposeResult:
        with Vertical(classes="window -large"):
            with VerticalScroll(id="log-messages") as messages:
                messages.border_title = Content("Messages of the run")  # type: ignore[assignment]
                yield TextView(id="messages")
            with VerticalScroll(id="log-file") as file:
                file.border_title = Content("run.log")  # type: ignore[assignment]
                file.border_subtitle = Content("Tab changes panes   Esc closes")  # type: ignore[assignment]
                yield TextView(id="lines")

    def on_mount(self) -> None:
        self.look()
        self.set_interval(LOOK_SECONDS, self.look)
        self.query_one("#log-file").focus()

    def look(self) -> None:
        self._follow("#log-messages", "#messages", self._source.snapshot().messages, self._messages)
        self._follow("#log-file", "#lines", tail_of(self._source.run / layout.RUN_LOG), self._lines)

    def _follow(self, pane: str, paper: str, key: object, draw: object) -> None:
        """Stay at the end, unless the person scrolled up."""
        scroll = self.query_one(pane)
        at_end = scroll.scroll_offset.y >= scroll.max_scroll_y - 1
        self.query_one(paper, TextView).put(key, draw)  # type: ignore[arg-type]
        if at_end:
            scroll.scroll_end(animate=False)

    def _messages(self, width: int) -> list[Content]:
        return message_lines(self._source.snapshot(), width)

    def _lines(self, width: int) -> list[Content]:
        text = tail_of(self._source.run / layout.RUN_LOG)
        return paragraph(safe_text(text or "Nothing yet.", "$muted", TAIL_BYTES), width)


def message_lines(state: RunState, width: int) -> list[Content]:
    rows = []
    for when, message in state.messages:
        mark = LEVEL_MARKS.get(message.level, UNKNOWN)
        loud = message.level in ("warning", "error")
        rows.append(
            (
                Content.styled(time.strftime("%H:%M:%S", time.localtime(when)), "$muted"),
                Content.styled(mark.glyph, mark.style),
                one_line(message.stage, "$muted", 12),
                safe_text(message.text, mark.style if loud else "$foreground", 2_000),
            )
        )
    nothing = [Content.styled("No messages.", "$muted")]
    return table(rows, (Column(8), Column(1), Column(12), Column()), width) if rows else nothing


def tail_of(path: Path) -> str:
    """The end of a file, starting at a whole line; empty if it does not exist."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL_BYTES, 0))
            raw = file.read(TAIL_BYTES)
    except (OSError, UnsafeError):  # no log yet, or what is none
        return ""
    text = raw.decode("utf-8", errors="backslashreplace")
    return text if size <= TAIL_BYTES else text.partition("\n")[2]
