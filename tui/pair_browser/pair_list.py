"""The list of pairs: one per row, filtered and sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from textual.content import Content

from engine.security.sanitize import visible_line
from tui.pair_browser.query import Order, Query, parse
from tui.pair_browser.rows import PairRow
from tui.widgets.layout import fit
from tui.widgets.marks import PAIR_MARKS
from tui.widgets.row_list import RowList


class PairColumn(NamedTuple):
    """A column of the list: its sort key, its title, its width, and the list width from which it is shown."""

    name: str
    title: str
    cells: int
    from_width: int
    right: bool = True


NUMBER = PairColumn("line", "#", 6, 0)
VERDICT = PairColumn("verdict", "verdict", 15, 0, right=False)
COLUMNS = (
    NUMBER,
    VERDICT,
    PairColumn("gain", "gain", 6, 50),
    PairColumn("score", "score", 6, 90),
    PairColumn("draft", "draft", 6, 60),
    PairColumn("revision", "rev.", 6, 60),
)
"""The columns before the prompt, which takes the remaining width."""
WIDE_VERDICT = 26
"""Width of the verdict if there is room for all reasons."""
MUCH_ROOM = 110


class PairList(RowList):
    """The rows of a store, filtered and sorted. On its last row, the cursor follows added rows."""

    def __init__(self, rows: Sequence[PairRow], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._rows = rows
        self._indices: Sequence[int] = range(0)
        self._taken = 0
        """The number of rows that `_indices` covers."""
        self.query_, self.order = Query(), Order()

    # -- which rows ---------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def row_count(self) -> int:
        return len(self._indices)

    @property
    def index(self) -> int | None:
        """The store's index of the row under the cursor."""
        return self._indices[self.cursor] if self.cursor < self.row_count else None

    @property
    def row(self) -> PairRow | None:
        return None if self.index is None else self._rows[self.index]

    def use(self, rows: Sequence[PairRow]) -> None:
        """Show these rows: the store was reset."""
        self._rows = rows
        self.rearrange(keep_cursor=False)

    def take_new(self) -> None:
        """Include the rows that were added at the end."""
        following = self.cursor >= self.row_count - 1 and self.row_count > 1
        if self.order != Order() or not isinstance(self._indices, (range, list)):
            self.rearrange()
            return
        new = range(self._taken, len(self._rows))
        if not self.query_:
            self._indices = range(len(self._rows))
        else:
            self._indices = [*self._indices, *self.query_.among(self._rows, new)]
        self._taken = len(self._rows)
        self.rows_changed(self.row_count - 1 if following else self.cursor)

    def filter(self, text: str) -> None:
        before, self.query_ = self.query_, parse(text)
        among = self._indices if before and self.query_.narrows(before) else None
        self.rearrange(among)

    def sort(self, order: Order) -> None:
        self.order = order
        self.rearrange()

    def rearrange(self, among: Sequence[int] | None = None, *, keep_cursor: bool = True) -> None:
        """Filter and sort again; the cursor stays on its pair if that is still shown.

        among   rows that may match, if known; in order
        """
        under_cursor = self.index if keep_cursor else None
        all_rows = range(len(self._rows))
        found: Sequence[int] = (
            self.query_.among(self._rows, among if among is not None else all_rows) if self.query_ else all_rows
        )
        if self.order != Order() and among is None:
            found = self.order.sort(self._rows, list(found))
        self._indices, self._taken = found, len(self._rows)
        self.rows_changed(self._place_of(under_cursor))

    def show_index(self, index: int) -> bool:
        """Put the cursor on a row of the store; False if the filter hides it."""
        place = self._place_of(index)
        is_shown = place < self.row_count and self._indices[place] == index
        if is_shown:
            self.cursor = place
        return is_shown

    def _place_of(self, index: int | None) -> int:
        """The place of a row in the list, or where it would be."""
        if index is None:
            return 0
        if isinstance(self._indices, range) or self.order == Order():
            low, high = 0, self.row_count
            while low < high:
                middle = (low + high) // 2
                if self._indices[middle] < index:
                    low = middle + 1
                else:
                    high = middle
            return min(low, max(self.row_count - 1, 0))
        return self._indices.index(index) if index in self._indices else min(self.cursor, max(self.row_count - 1, 0))

    def next_flagged(self, by: int) -> bool:
        """Move the cursor to the next flagged row, or (-1) the previous one, wrapping around; False if there is none."""
        return self._go_to(lambda row: row.flagged, by)

    def next_undecided(self) -> bool:
        """Move the cursor to the next row without a decision, wrapping around; False if there is none."""
        return self._go_to(lambda row: not row.decided)

    def _go_to(self, matches: Callable[[PairRow], bool], by: int = 1) -> bool:
        for step in range(1, self.row_count + 1):
            place = (self.cursor + by * step) % self.row_count
            if matches(self._rows[self._indices[place]]):
                self.cursor = place
                return True
        return False

    def indices_on_screen(self) -> list[int]:
        top = self.scroll_offset.y
        return list(self._indices[top : top + self.size.height])

    # -- drawing ------------------------------------------------------------------------------------------------------

    def empty_text(self) -> str:
        return "No pairs yet." if not self._rows else "No pair matches the filter."

    def row_content(self, index: int, width: int) -> Content:
        return row_text(self._rows[self._indices[index]], width)


def columns_for(width: int) -> list[PairColumn]:
    columns = [column for column in COLUMNS if width >= column.from_width]
    return [
        column._replace(cells=WIDE_VERDICT) if column == VERDICT and width >= MUCH_ROOM else column
        for column in columns
    ]


def header_text(width: int, order: Order) -> Content:
    """The titles of the columns, with an arrow at the sorted one."""
    arrow = "↓" if order.reverse else "↑"
    cells = [
        fit(_title(column.title, column.name, order, arrow), column.cells, right=column.right).pad_right(1)
        for column in columns_for(width)
    ]
    return Content("").join([*cells, _title("prompt", "prompt", order, arrow)]).truncate(width, ellipsis=True)


def _title(title: str, name: str, order: Order, arrow: str) -> Content:
    if name == order.column:
        return Content.styled(f"{title}{arrow}", "bold $heading")
    return Content.styled(title, "$muted")


def row_text(row: PairRow, width: int) -> Content:
    """One row of the list."""
    cells = [
        fit(_cell(row, column, column.cells), column.cells, right=column.right).pad_right(1)
        for column in columns_for(width)
    ]
    return Content("").join([*cells, Content(row.prompt)])


def _cell(row: PairRow, column: PairColumn, cells: int) -> Content:
    if column == NUMBER:
        return Content.styled(f"{row.line.number + 1}", "$muted")
    if column.name == VERDICT.name:
        return verdict_text(row, all_reasons=cells >= WIDE_VERDICT)
    if column.name == "gain":
        gain = row.gain
        return Content.styled("" if gain is None else f"{gain:+.2f}", "$pair-ok" if (gain or 0) > 0 else "$pair-bad")
    value = getattr(row, column.name)
    return Content.styled("" if value is None else f"{value:.2f}" if isinstance(value, float) else f"{value}", "$muted")


def verdict_text(row: PairRow, *, all_reasons: bool = False) -> Content:
    """A mark and a word: the human decision, else the reason against the pair, else that it is usable."""
    mark = PAIR_MARKS[row.state]
    reasons = [visible_line(one, 24) for one in row.reasons]
    text = mark.word
    if row.state == "out" and reasons:
        more = f" +{len(reasons) - 1}" if len(reasons) > 1 else ""
        text = ", ".join(reasons) if all_reasons else reasons[0] + more
    note = " *" if row.decision is not None and row.decision.note else ""
    preliminary = "" if row.checked else " ?"
    return Content.assemble((f"{mark.glyph} {text}{note}", mark.style), (preliminary, "$muted"))
