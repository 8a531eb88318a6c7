"""A list for any number of rows: only the visible ones are drawn (`render_line`; DataTable would lay out all)."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.style import Style

from tui.keys import bindings
from tui.widgets.layout import fit


class RowList(ScrollView, can_focus=True):
    """Rows with a cursor. A subclass returns their number and draws each one."""

    BINDINGS = bindings("list")
    PLACE = "list"
    """The place of its keys, for footer and help."""

    DEFAULT_CSS = """
    RowList {
        height: 1fr;
        background: $background;
        color: $foreground;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        scrollbar-color: $rule;
    }
    """

    cursor: reactive[int] = reactive(0, repaint=False)
    """An index into the rows."""

    class RowMessage(Message):
        """Base class of the list's messages."""

        def __init__(self, rows: RowList) -> None:
            super().__init__()
            self.rows = rows

        @property
        def control(self) -> RowList:
            return self.rows

    class Moved(RowMessage):
        """The cursor moved, or the row under it changed."""

    class Opened(RowMessage):
        """Enter was pressed on a row, or the row was double-clicked."""

    # -- for subclasses -----------------------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """The number of rows."""
        raise NotImplementedError

    def row_content(self, index: int, width: int) -> Content:
        """One row, in at most `width` cells."""
        raise NotImplementedError

    def empty_text(self) -> str:
        """The text to show if the list is empty."""
        return "Nothing here."

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def rows_changed(self, cursor: int | None = None) -> None:
        """Call after rows were added, removed or replaced."""
        self.virtual_size = Size(0, self.row_count)
        self.cursor = self.cursor if cursor is None else cursor
        self._show_cursor()
        self.post_message(self.Moved(self))
        self.refresh()

    def validate_cursor(self, cursor: int) -> int:
        return min(max(cursor, 0), max(self.row_count - 1, 0))

    def watch_cursor(self) -> None:
        self._show_cursor()
        self.post_message(self.Moved(self))
        self.refresh()

    def action_cursor(self, by: str) -> None:
        page = max(self.scrollable_content_region.height - 1, 1)
        moves = {
            "down": 1,
            "up": -1,
            "page_down": page,
            "page_up": -page,
            "home": -self.row_count,
            "end": self.row_count,
        }
        self.cursor += moves[by]

    def action_open(self) -> None:
        if self.row_count:
            self.post_message(self.Opened(self))

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is not None and place.y + self.scroll_offset.y < self.row_count:
            self.cursor = place.y + self.scroll_offset.y
            if event.chain == 2:
                self.action_open()

    def on_resize(self) -> None:
        self._show_cursor()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _show_cursor(self) -> None:
        if self.is_mounted:
            self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        if index < self.row_count:
            line = fit(self.row_content(index, width), width)
            if index == self.cursor:
                line = line.stylize_before("on $pair-cursor" if self.has_focus else "on $rail-selected")
        else:
            line = fit(Content.styled(self.empty_text() if y == 0 and not self.row_count else "", "$muted"), width)
        style = self.visual_style
        return Strip(line.render_segments(Style(background=style.background, foreground=style.foreground)), width)
