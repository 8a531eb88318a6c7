"""The rows of an options form: under headings, common options first, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message

from engine.core.options import Option
from engine.core.wording import plural
from tui.formatting import one_line
from tui.keys import bindings
from tui.widgets.layout import EMPTY, fit, shortened
from tui.widgets.option_help import choices_of, differs, shown_value
from tui.widgets.row_list import RowList
from tui.widgets.stage_sections import section
from tui.widgets.text_view import clickable

MAX_SHOWN_AT_ONCE = 12
"""A form with at most so many options shows all of them at once."""
MIN_VALUE_CELLS = 10
Row = Option | str
"""An option, a heading, or an empty text (a blank row above a heading)."""


class OptionRows(RowList):
    """A row per option: whether it differs from its default, its label, its value, and its name."""

    BINDINGS = bindings("options")
    PLACE = "options"

    def __init__(self, options: Sequence[Option], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.all_options = tuple(options)
        self.values: dict[str, Any] = {}
        self.shows_all = len(options) <= MAX_SHOWN_AT_ONCE
        """Whether the less common options are shown, too."""
        self.search_words = ""
        """The words of the current search."""
        self.rows: tuple[Row, ...] = ()
        self._arrange()

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def options(self) -> tuple[Option, ...]:
        """The options that are shown."""
        return tuple(row for row in self.rows if isinstance(row, Option))

    @property
    def option(self) -> Option | None:
        """The option under the cursor; None if none is shown."""
        row = self.rows[self.cursor] if self.cursor < len(self.rows) else None
        return row if isinstance(row, Option) else None

    def update(self, values: dict[str, Any]) -> None:
        if values != self.values:
            first, self.values = not self.values, values
            self.rearrange()
            if first:
                self.cursor = 0

    # -- which are shown ----------------------------------------------------------------------------------------------

    def toggle_all(self) -> None:
        """Show the less common options, too, or hide them."""
        self.shows_all = not self.shows_all
        self.rearrange()

    def find(self, words: str) -> None:
        """Show only the options whose label, name or sentence has all of the words."""
        self.search_words = words
        self.rearrange()

    def go_to(self, name: str) -> None:
        """Put the cursor on an option."""
        if name not in {option.name for option in self.options}:
            self.search_words, self.shows_all = "", True
            self.rearrange()
        self.cursor = next(place for place, row in enumerate(self.rows) if isinstance(row, Option) and row.name == name)

    @property
    def hidden(self) -> int:
        return 0 if self.search_words else len(self.all_options) - len(self.options)

    def rearrange(self) -> None:
        """Choose again which rows to show; the cursor stays on its option."""
        before, rows = self.option, self.rows
        self._arrange()
        if self.rows == rows:
            self.virtual_size = Size(0, self.row_count)
            self.refresh()
            return
        place = next((place for place, row in enumerate(self.rows) if row is before), None)
        if self.is_mounted:
            self.rows_changed(place)

    def _arrange(self) -> None:
        chosen = [option for option in self.all_options if self._is_shown(option)]
        rows: list[Row] = []
        topics = dict.fromkeys(option.topic for option in chosen)
        blank = [""] if len(chosen) + 2 * len(topics) <= self.size.height else []
        for topic in topics:
            own = [option for option in chosen if option.topic == topic]
            rows += [*(blank if rows else ()), topic, *sorted(own, key=lambda option: not option.common)]
        self.rows = tuple(rows)

    def _is_shown(self, option: Option) -> bool:
        if self.search_words:
            text = f"{option.label} {option.name} {option.name.replace('_', '-')} {option.sentence}".casefold()
            return all(word in text for word in self.search_words.casefold().split())
        return self.shows_all or option.common or differs(option, self.values.get(option.name, option.default))

    def empty_text(self) -> str:
        return "No option matches." if self.search_words else "This stage has no options."

    # -- the cursor is always on an option, never on a heading ---------------------------------------------------------

    def validate_cursor(self, cursor: int) -> int:
        cursor = super().validate_cursor(cursor)
        if not self.rows:
            return cursor
        up = cursor < self.cursor
        onwards = range(cursor, -1, -1) if up else range(cursor, len(self.rows))
        backwards = range(cursor, len(self.rows)) if up else range(cursor, -1, -1)
        return next((place for place in (*onwards, *backwards) if isinstance(self.rows[place], Option)), cursor)

    def on_resize(self) -> None:
        self.rearrange()

    def _show_cursor(self) -> None:
        """Scroll to the cursor, and to the heading if that is directly above."""
        first = self.cursor
        while first and not isinstance(self.rows[first - 1], Option):
            first -= 1
        if self.is_mounted:
            self.scroll_to_region(Region(0, first, 1, self.cursor - first + 1), animate=False, force=True)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def row_content(self, index: int, width: int) -> Content:
        row = self.rows[index]
        if isinstance(row, str):
            return section(row, "", width) if row else EMPTY
        labels = max(len(option.label) for option in self.options) + 2
        values = max(len(shown_value(option, self.values.get(option.name))) for option in self.options)
        names = max(len(option.name) for option in self.options)
        room = min(max(values, MIN_VALUE_CELLS), max(width - labels - names - 5, MIN_VALUE_CELLS))
        return option_row(row, self.values.get(row.name), labels, room, width)

    # -- messages and actions of the keys -----------------------------------------------------------------------------

    class ValueChosen(Message):
        """The user chose a value, as text or typed; the editor validates it with the configuration class."""

        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

    class SearchRequested(Message):
        """The user wants to search the options."""

    def action_choose(self, by: int) -> None:
        if self.option is None:
            return
        choices, now = choices_of(self.option), self.values.get(self.option.name)
        if choices:
            self.post_message(
                self.ValueChosen(choices[(choices.index(now) + by) % len(choices) if now in choices else 0])
            )

    def action_default(self) -> None:
        if self.option is not None:
            none = None if self.option.is_optional else ""
            self.post_message(self.ValueChosen(self.option.default or none))

    def action_rest(self) -> None:
        self.toggle_all()

    def action_search(self) -> None:
        self.post_message(self.SearchRequested())


def option_row(option: Option, value: object, labels: int, values: int, width: int) -> Content:
    """The label and the value, in so many cells each, and the name, dimmed."""
    changed = differs(option, value)
    text = shown_value(option, value)
    shown = one_line(text or "none", "bold $heading" if changed else "$foreground" if text else "$muted")
    cells = [
        Content.styled(" ● " if changed else "   ", "$accent"),
        fit(Content.styled(option.label, "$foreground"), labels),
        fit(shortened(shown, values), values),
        Content.styled(f"  {option.name.replace('_', '-')}", "$muted"),
    ]
    return EMPTY.join(cells).truncate(width, ellipsis=True)


def rest_line(hidden: int, shows_all: bool, width: int) -> Content:
    """How many options are not shown, and how to show or find them."""
    key = Content.styled(".", "bold $key")
    effect = "shows only the common ones" if shows_all else f"shows {plural(hidden, 'more option')}"
    more = Content.assemble(key, (f" {effect}   ", "$muted")) if hidden or shows_all else EMPTY
    find = Content.assemble(("/", "bold $key"), (" finds one", "$muted"))
    return (clickable(more, "screen.press('full_stop')") + clickable(find, "screen.press('slash')")).truncate(
        width, ellipsis=True
    )
