"""The list of pairs beside the pair under its cursor, read from `pairs.jsonl` while it grows."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input

from tui.tail import JsonlTail, Piece, read_line
from tui.widgets.layout import fit, paragraph
from tui.widgets.pair_list import PairList, PairRow, pair_row
from tui.widgets.pair_text import pair_lines
from tui.widgets.paper import Paper
from tui.widgets.words import line, plural

LOOK_SECONDS = 0.7

log = logging.getLogger(__name__)


class PairBrowser(Vertical):
    """A filter, a list, and one pair in full; Enter gives the pair the whole room, Esc takes it back."""

    def __init__(
        self,
        path: Path,
        *,
        scores: Path | None = None,
        from_the_end: bool = False,
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self._path = path
        self._scores_path = scores
        self._scores_size = 0
        self._scores: dict[str, tuple[float, float]] = {}
        """(draft's, revision's), by pair id."""
        self._from_the_end = from_the_end
        self._tail = JsonlTail(path)
        self.decisions: dict[str, str] = {}
        """What people decided, in words, by pair id."""

    def compose(self) -> ComposeResult:
        yield Input(placeholder="words to look for, !words to leave out", id="pair-filter", select_on_focus=False)
        with Vertical(id="pair-panes"):
            with Vertical(id="pair-left"):
                yield Paper(id="pair-count")
                yield PairList(from_the_end=self._from_the_end, id="pair-list")
            with VerticalScroll(id="pair-detail", can_focus=False):
                yield Paper(id="pair-text")

    def on_mount(self) -> None:
        self.query_one("#pair-filter").display = False
        self.set_interval(LOOK_SECONDS, self.look)
        self.look()

    @property
    def pairs(self) -> PairList:
        return self.query_one(PairList)

    # -- reading ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read what is new, unless nobody can see it or a look is under way."""
        if self.is_attached and self._is_visible() and not self._reading():
            self._read()

    def _is_visible(self) -> bool:
        return all(node.display for node in self.ancestors_with_self if hasattr(node, "display"))

    def _reading(self) -> bool:
        return any(worker.group == "pairs" and worker.is_running for worker in self.workers if worker.node is self)

    @work(group="pairs", exclusive=True, description="reads pairs.jsonl", exit_on_error=False)
    async def _read(self) -> None:
        while True:
            try:
                piece, rows = await asyncio.to_thread(self._piece)
                scores = await asyncio.to_thread(self._new_scores)
            except OSError as error:
                log.warning("%s could not be read: %s", self._path, error)
                return
            if piece.begun_anew:
                self.pairs.empty()
            if rows:
                self.pairs.add(rows)
            if scores is not None:
                self._scores = scores
                self.pairs.show_gains({pair: revised - draft for pair, (draft, revised) in scores.items()})
                self.show_pair()
            self._draw_count()
            if not rows:
                return

    def _piece(self) -> tuple[Piece, list[PairRow]]:
        piece = self._tail.read()
        return piece, [pair_row(line) for line in piece.lines]

    def _new_scores(self) -> dict[str, tuple[float, float]] | None:
        """The scores, where their file has grown since the last look."""
        if self._scores_path is None or not self._scores_path.exists():
            return None
        size = self._scores_path.stat().st_size
        if size == self._scores_size:
            return None
        from engine.pairs.scores import newest_scores

        self._scores_size = size
        return newest_scores(self._scores_path)

    # -- the filter ---------------------------------------------------------------------------------------------------

    def open_filter(self) -> None:
        field = self.query_one("#pair-filter", Input)
        field.display = True
        field.focus()

    def back(self) -> bool:
        """One step back: the filter closed, the pair made small again, the list left. False where none was there."""
        field = self.query_one("#pair-filter", Input)
        if field.display:
            field.value = ""
            field.display = False
            self.pairs.focus()
            return True
        if self.has_class("-zoomed"):
            self.remove_class("-zoomed")
            return True
        if self.pairs.has_focus:
            self.screen.set_focus(None)
            return True
        return False

    @on(Input.Changed, "#pair-filter")
    def _filter(self, event: Input.Changed) -> None:
        event.stop()
        self.pairs.filter(event.value)
        self._draw_count()

    @on(Input.Submitted, "#pair-filter")
    def _filtered(self, event: Input.Submitted) -> None:
        event.stop()
        event.input.display = bool(event.value)
        self.pairs.focus()

    # -- the pair under the cursor ------------------------------------------------------------------------------------

    @on(PairList.Highlighted)
    def _highlighted(self, event: PairList.Highlighted) -> None:
        event.stop()
        self.show_pair()

    @on(PairList.Opened)
    def _opened(self, event: PairList.Opened) -> None:
        event.stop()
        self.toggle_class("-zoomed")

    def show_pair(self) -> None:
        """Read the record under the cursor from disk again, and show all of it."""
        row = self.pairs.row
        paper = self.query_one("#pair-text", Paper)
        if row is None:
            paper.put(None, None)
            return
        try:
            record = read_line(self._path, row.line)
        except (OSError, ValueError) as error:
            text = line(f"This line could not be read: {error}", "$check-warning")
            paper.put((row.line.number, "unreadable"), lambda width: paragraph(text, width))
            return
        scored = self._scores.get(row.id)
        if scored is not None:
            record = {**record, "base_score": scored[0], "revised_score": scored[1]}
        title = f"Pair {row.line.number + 1:,}"
        decided = self.decisions.get(str(record.get("id")), "")
        paper.put((row.line, decided, scored), lambda width: pair_lines(record, title, decided, width))
        self.query_one("#pair-detail").scroll_home(animate=False)

    def scroll_detail(self, pages: int) -> None:
        detail = self.query_one("#pair-detail")
        detail.scroll_relative(y=pages * max(detail.size.height - 1, 1), animate=False)

    def _draw_count(self) -> None:
        pairs = self.pairs
        filtered = pairs.shown != pairs.count or bool(self.query_one("#pair-filter", Input).value)
        told = f"{pairs.shown:,} of {plural(pairs.count, 'line')}" if filtered else plural(pairs.count, "line")
        text = Content.assemble((told, "$foreground"), ("   / filters   Enter opens   Esc goes back", "$muted"))
        self.query_one("#pair-count", Paper).put(told, lambda width: [fit(text, width)])
