"""A list of pairs as long as the run makes it: only the lines on the screen are ever drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.style import Style

from engine.jsonl import BadLine
from engine.text import visible_line
from tui.keys import bindings
from tui.tail import Line
from tui.widgets.layout import fit
from tui.widgets.words import number

PROMPT_KEPT = 240
SEARCHED = 400
"""Characters of the prompt and of each answer that a filter looks at."""


@dataclass(frozen=True)
class PairRow:
    """What the list keeps of a record; the record itself stays on disk."""

    line: Line
    id: str
    status: str
    """`ok`, or the reason why not."""
    prompt: str
    gain: float | None
    """How much better a judge found the revision; None where nothing scored."""
    searched: str

    @property
    def usable(self) -> bool:
        return self.status == "ok"


def pair_row(line: Line) -> PairRow:
    """The row of one line of `pairs.jsonl`, whoever wrote it: every key may be missing, or of another type."""
    record = line.record
    place = Line(line.number, line.offset, line.length, {})
    if isinstance(record, BadLine):
        return PairRow(place, "", "damaged", visible_line(record.reason, PROMPT_KEPT), None, "damaged")
    prompt = visible_line(str(record.get("prompt") or "")[: 2 * PROMPT_KEPT], PROMPT_KEPT)
    status = visible_line(str(record.get("status") or "ok"), 24)
    texts = [str(record.get(key) or "")[:SEARCHED] for key in ("prompt", "base_response", "revised_response")]
    principles = record.get("principle_ids")
    words = [status, *texts, *(map(str, principles) if isinstance(principles, list) else ())]
    return PairRow(place, str(record.get("id") or ""), status, prompt, _gain(record), " ".join(words).casefold())


def matches(row: PairRow, terms: tuple[str, ...]) -> bool:
    """Every term is in the row; a term after `!` is not."""
    return all((term[1:] not in row.searched) if term.startswith("!") else (term in row.searched) for term in terms)


def terms_of(text: str) -> tuple[str, ...]:
    return tuple(term for term in text.casefold().split() if term != "!")


def _gain(record: dict[str, Any]) -> float | None:
    if record.get("base_score") is None or record.get("revised_score") is None:
        return None
    gain = number(record["revised_score"]) - number(record["base_score"])
    return gain if gain == gain else None


class PairList(ScrollView, can_focus=True):
    """Rows with a cursor and a filter. At its last row it follows what is added."""

    BINDINGS = bindings("list")

    cursor: reactive[int] = reactive(0, repaint=False)
    """An index into what the filter lets through."""

    class Highlighted(Message):
        """The cursor is on another pair, or on none."""

        def __init__(self, row: PairRow | None) -> None:
            super().__init__()
            self.row = row

    class Opened(Message):
        """Enter was pressed on a pair."""

    def __init__(self, *, from_the_end: bool = False, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._from_the_end = from_the_end
        """Begin at the last row, and so follow, before anybody moved the cursor."""
        self._rows: list[PairRow] = []
        self._shown: list[int] | None = None
        self._terms: tuple[str, ...] = ()
        self._told: PairRow | None = None
        self._gains: dict[str, float] = {}

    # -- the rows -----------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def shown(self) -> int:
        """How many the filter lets through."""
        return len(self._rows) if self._shown is None else len(self._shown)

    @property
    def row(self) -> PairRow | None:
        """The one under the cursor."""
        return self.row_at(self.cursor)

    def row_at(self, index: int) -> PairRow | None:
        if not 0 <= index < self.shown:
            return None
        return self._rows[index if self._shown is None else self._shown[index]]

    def add(self, rows: list[PairRow]) -> None:
        following = self.cursor >= self.shown - 1 and (self.shown > 1 or self._from_the_end)
        first = len(self._rows)
        self._rows.extend(rows)
        if self._shown is not None:
            self._shown.extend(first + i for i, row in enumerate(rows) if matches(row, self._terms))
        self._rows_changed(self.shown - 1 if following else self.cursor)

    def show_gains(self, gains: dict[str, float]) -> None:
        """How much better a judge found each revision, by pair id: it goes before what a record says itself."""
        self._gains = gains
        self.refresh()

    def empty(self) -> None:
        """Forget all rows: the file was made anew."""
        self._rows = []
        self._shown = [] if self._terms else None
        self._rows_changed(0)

    def filter(self, text: str) -> None:
        """Show rows that hold every word of `text`, and none that is written after `!`; all rows for an empty text."""
        under_cursor = self.row
        self._terms = terms_of(text)
        self._shown = [i for i, row in enumerate(self._rows) if matches(row, self._terms)] if self._terms else None
        self._rows_changed(self._index_of(under_cursor))

    def _index_of(self, row: PairRow | None) -> int:
        """Where `row` is now, or the nearest place before it; rows are in the order of their lines."""
        if row is None:
            return 0
        low, high = 0, self.shown
        while low < high:
            middle = (low + high) // 2
            found = self.row_at(middle)
            if found is not None and found.line.number < row.line.number:
                low = middle + 1
            else:
                high = middle
        return min(low, max(self.shown - 1, 0))

    def _rows_changed(self, cursor: int) -> None:
        self.virtual_size = Size(0, self.shown)
        self.cursor = min(max(cursor, 0), max(self.shown - 1, 0))
        self._show_cursor()
        self._tell()
        self.refresh()

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def validate_cursor(self, cursor: int) -> int:
        return min(max(cursor, 0), max(self.shown - 1, 0))

    def watch_cursor(self) -> None:
        self._show_cursor()
        self._tell()
        self.refresh()

    def action_cursor(self, by: str) -> None:
        page = max(self.scrollable_content_region.height - 1, 1)
        moves = {"down": 1, "up": -1, "page_down": page, "page_up": -page, "home": -self.shown, "end": self.shown}
        self.cursor += moves[by]

    def action_open(self) -> None:
        if self.row is not None:
            self.post_message(self.Opened())

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is not None:
            self.cursor = place.y + self.scroll_offset.y

    def on_resize(self) -> None:
        self._show_cursor()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _show_cursor(self) -> None:
        if self.is_mounted:
            self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def _tell(self) -> None:
        if self.row is not self._told:
            self._told = self.row
            self.post_message(self.Highlighted(self.row))

    # -- drawing ------------------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        row = self.row_at(index)
        width = self.scrollable_content_region.width
        if row is None:
            empty = "No pairs yet." if not self._rows else "No pair matches the filter."
            text = Content.styled(empty if y == 0 and not self.shown else "", "$muted")
        else:
            text = row_text(row, self._gains.get(row.id, row.gain))
        line = fit(text, width)
        if row is not None and index == self.cursor:
            line = line.stylize_before("on $pair-cursor" if self.has_focus else "on $rail-selected")
        style = self.visual_style
        return Strip(line.render_segments(Style(background=style.background, foreground=style.foreground)), width)


def row_text(row: PairRow, gain: float | None) -> Content:
    """One row: its number, whether it is usable, how much better a judge found the revision, and the prompt."""
    return Content.assemble(
        (f"{row.line.number + 1:>6} ", "$muted"),
        ("✓ ok        " if row.usable else f"✗ {row.status:<10.10}", "$pair-ok" if row.usable else "$pair-bad"),
        (f"{'' if gain is None else f'{gain:+.2f}':>7}", "$pair-ok" if (gain or 0) > 0 else "$pair-bad"),
        "  ",
        row.prompt,
    )
