"""The pair browser: a filter, a list, the selected pair, and the gate's figures, updated with each decision."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input

from engine.core.errors import Stage3Error
from engine.pairs.assessment.gate import Figure, figures
from engine.pairs.data.edits import Action
from tui.app_protocol import wizard_of
from tui.formatting import one_line, plural
from tui.keys import bindings
from tui.pair_browser.gate_strip import gate_lines
from tui.pair_browser.pair_list import PairList, header_text
from tui.pair_browser.pair_text import pair_lines
from tui.pair_browser.query import HINT, Order
from tui.pair_browser.store import PairStore
from tui.pair_browser.waiting import waiting_note
from tui.runs.run_source import RunSource
from tui.widgets.layout import fit, paragraph, spread
from tui.widgets.row_list import RowList
from tui.widgets.text_field import TextField
from tui.widgets.text_view import TextView, clickable

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

LOOK_SECONDS = 0.7
TYPING_SECONDS = 0.08
"""Seconds to wait for the next letter before filtering."""
SAMPLE_FILTER = "verdict:sample"
SLOW_LIST = 20_000
"""From this many rows, a list that depends on verdicts is sorted once at the end, not with each batch."""

log = logging.getLogger(__name__)


class PairBrowser(Vertical):
    """Enter shows the pair full screen, Esc returns."""

    BINDINGS = bindings("pairs")
    PLACE = "pairs"

    class Decided(Message):
        """A decision was written to `edits.jsonl`."""

    def __init__(self, source: RunSource, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._source = source
        self.store = PairStore(source.run, source.config.min_gain)
        self._before: dict[str, float | None] = {}
        """The gate's figures before the first decision made here."""
        self._typing: Timer | None = None

    def compose(self) -> ComposeResult:
        yield TextView(id="gate-strip")
        yield TextView(id="pair-waiting")
        field = Input(placeholder=HINT, id="pair-filter", select_on_focus=False)
        field.cursor_blink = False
        yield field
        with Vertical(id="pair-panes"):
            with Vertical(id="pair-left"):
                yield TextView(id="pair-count")
                yield TextView(id="pair-header")
                yield PairList(self.store.rows, id="pair-list")
            with VerticalScroll(id="pair-detail", can_focus=False):
                yield TextView(id="pair-text")
                yield TextField(id="pair-editor")

    def on_mount(self) -> None:
        self.query_one("#pair-filter").display = False
        self.query_one(TextField).display = False
        self.set_interval(LOOK_SECONDS, self.look)
        self.look()

    @property
    def pairs(self) -> PairList:
        return self.query_one(PairList)

    @property
    def editor(self) -> TextField:
        return self.query_one(TextField)

    @property
    def _config(self) -> Stage3Config:
        return self._source.config

    # -- reading and judging ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read new lines, unless the browser is hidden or a read is in progress."""
        if self.is_attached and self._is_visible() and not self._looking():
            self._look()

    def _is_visible(self) -> bool:
        return all(node.display for node in self.ancestors_with_self if hasattr(node, "display"))

    def _looking(self) -> bool:
        return any(worker.group == "pairs" and worker.is_running for worker in self.workers if worker.node is self)

    @work(group="pairs", exclusive=True, description="reads pairs.jsonl", exit_on_error=False)
    async def _look(self) -> None:
        try:
            await self._read_all()
            await self._judge_all()
        except OSError as error:
            log.warning("the pairs could not be read: %s", error)

    async def _read_all(self) -> None:
        store, pairs = self.store, self.pairs
        while news := await asyncio.to_thread(store.read):
            store.take(news)
            if news.was_replaced:
                pairs.use(store.rows)
            elif news.rows:
                pairs.take_new()
            if news.scores or news.edits is not None:
                pairs.refresh()
                self.show_pair()
            self._draw_strips()
            if not news.rows:
                break
        self._draw_strips()  # what waits depends on the run, too

    async def _judge_all(self) -> None:
        store, pairs = self.store, self.pairs
        while batch := store.next_to_judge(pairs.indices_on_screen()):
            store.take_findings(await asyncio.to_thread(store.judge, batch))
            depends = bool(pairs.query_.parts) or pairs.order != Order()
            if depends and (len(store.rows) < SLOW_LIST or not store.unjudged):
                pairs.rearrange()
            pairs.refresh()
            self._draw_strips()
            if pairs.index in {index for index, _, _ in batch}:
                self.show_pair()

    # -- the filter and the order -------------------------------------------------------------------------------------

    def action_filter(self) -> None:
        field = self.query_one("#pair-filter", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#pair-filter")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING_SECONDS, self._filter)

    def _filter(self) -> None:
        self.pairs.filter(self.query_one("#pair-filter", Input).value)
        self._draw_strips()

    @on(Input.Submitted, "#pair-filter")
    def _filtered(self, event: Input.Submitted) -> None:
        event.stop()
        self._filter()
        event.input.display = bool(event.value)
        self.pairs.focus()

    def action_sample(self) -> None:
        """Show only the sample."""
        if self.store.unjudged:
            self._say("The sample is drawn from the usable pairs, and not all are looked at yet.")
            return
        self.store.mark_sample()
        field = self.query_one("#pair-filter", Input)
        field.display, field.value = True, SAMPLE_FILTER
        self._filter()
        self.pairs.focus()
        self._say(f"{self.pairs.shown} pairs to decide about: y where the revision is better, else x or w.")

    def action_sort(self, by: int) -> None:
        self._sort(self.pairs.order.next(by))

    def action_reverse(self) -> None:
        self._sort(self.pairs.order.turned())

    def _sort(self, order: Order) -> None:
        self.pairs.sort(order)
        self._draw_strips()

    def step_back(self) -> bool:
        """One step back: leave the editor, close the filter, shrink the pair, or leave the list."""
        if self.editor.display:
            self._leave_editor()
            return True
        field = self.query_one("#pair-filter", Input)
        if field.display:
            field.value = ""
            field.display = False
            self._filter()
            self.pairs.focus()
            return True
        if self.has_class("-zoomed"):
            self.remove_class("-zoomed")
            return True
        return False

    # -- the pair under the cursor ------------------------------------------------------------------------------------

    @on(RowList.Moved)
    def _moved(self, event: RowList.Moved) -> None:
        event.stop()
        self.show_pair()

    @on(RowList.Opened)
    def _opened(self, event: RowList.Opened) -> None:
        event.stop()
        self.toggle_class("-zoomed")

    def show_pair(self) -> None:
        """Read the record under the cursor from disk again, and show all of it."""
        row = self.pairs.row
        paper = self.query_one("#pair-text", TextView)
        if row is None:
            paper.put(None, None)
            return
        key = (row.line, row.decision, row.reasons, row.usable, row.gain, row.score)
        try:
            record = self.store.record(row.line)
        except (OSError, ValueError) as error:
            text = one_line(f"Cannot read this line: {error}", "$check-warning")
            paper.put((row.line, "unreadable"), lambda width: paragraph(text, width))
            return
        shown = row
        paper.put(key, lambda width: pair_lines(record, shown, width))
        if self._shown_line != row.line:
            self._shown_line = row.line
            self.query_one("#pair-detail").scroll_home(animate=False)

    _shown_line: object = None

    def scroll_detail(self, pages: int) -> None:
        detail = self.query_one("#pair-detail")
        detail.scroll_relative(y=pages * max(detail.size.height - 1, 1), animate=False)

    def action_flagged(self, by: int) -> None:
        if not self.pairs.next_flagged(by):
            self._say("No flagged pair is left without a decision.")

    # -- decisions ----------------------------------------------------------------------------------------------------

    def action_decide(self, action: Action) -> None:
        if (index := self._index_to_decide()) is None or not self._decide(index, action):
            return
        if self._shows_sample():  # one key decides, and shows the next
            self.pairs.next_undecided()

    def _shows_sample(self) -> bool:
        return self.query_one("#pair-filter", Input).value == SAMPLE_FILTER

    def _left_of_sample(self) -> int:
        return sum(row.sampled and not row.decided for row in self.store.rows)

    def action_undo(self) -> None:
        if self._refuses():
            return
        try:
            index = self.store.undo(self.pairs.index)
        except (OSError, ValueError, Stage3Error) as error:
            self._say(f"Cannot undo: {error}", "error")
            return
        if index is None:
            self._say("Nothing to undo.")
            return
        self.pairs.show_index(index)
        self._decided(f"Pair {self.store.rows[index].line.number + 1:,}: last decision undone.")

    def _decide(self, index: int, action: Action, text: str | None = None, field: str | None = None) -> bool:
        before = self._figures()
        try:
            self.store.decide(index, action, text, field)
        except (OSError, ValueError, Stage3Error) as error:
            self._say(f"Cannot save the decision: {error}", "error")
            return False
        self._before = self._before or {figure.name: figure.value for figure in before}
        row = self.store.rows[index]
        self._decided(f"Pair {row.line.number + 1:,}: {TOLD[action]}.")
        return True

    def _decided(self, told: str) -> None:
        self.pairs.refresh()
        self.show_pair()
        self._draw_strips()
        waits = waiting_note(self._source, self._source.snapshot())
        if not self._shows_sample():
            self._say(f"{told} {waits}".rstrip())
        elif not self._left_of_sample():  # the strip counts; thirty notices would cover the pairs
            self._say(f"All of the sample are decided: r goes on. {waits}".rstrip())
        self.post_message(self.Decided())

    def _index_to_decide(self) -> int | None:
        if self._refuses():
            return None
        if self.pairs.index is None:
            self._say("No pair is selected.")
        return self.pairs.index

    def _refuses(self) -> bool:
        """Say why no decision is possible now; False if one is."""
        if not self._source.decides:
            self._say("Another process owns this run. To decide here, too: `stage3-tui attach --allow-decisions`.")
        return not self._source.decides

    # -- writing ------------------------------------------------------------------------------------------------------

    def action_edit(self) -> None:
        self._edit("revised_response")

    def action_note(self) -> None:
        if (index := self._index_to_decide()) is not None:
            decision = self.store.rows[index].decision
            self._open_editor(index, "note", "" if decision is None else decision.note)

    @work(group="editor", exclusive=True, description="waits for an editor", exit_on_error=False)
    async def action_edit_outside(self) -> None:
        from tui.terminal.external_editor import edit_externally

        if (index := self._index_to_decide()) is None:
            return
        before = self._text_now(index, "revised_response")
        try:
            text = await edit_externally(wizard_of(self).terminal_driver, self._source.run.folder, before)
        except (OSError, ValueError) as error:
            self._say(str(error), "error")
            return
        if text is None or text == before:
            self._say("No changes.")
        else:
            self._decide(index, "edit", text, "revised_response")

    def _edit(self, field: str) -> None:
        if (index := self._index_to_decide()) is not None:
            self._open_editor(index, field, self._text_now(index, field))

    def _text_now(self, index: int, field: str) -> str:
        """The current text of a field, after edits."""
        row = self.store.rows[index]
        edited = None if row.decision is None else getattr(row.decision, field)
        return edited if edited is not None else str(self.store.record(row.line).get(field) or "")

    def _open_editor(self, index: int, field: str, text: str) -> None:
        title = f"{WRITTEN[field]} of pair {self.store.rows[index].line.number + 1:,}"
        self.editor.open(index, field, title, text, has_other=field != "note")
        self.query_one("#pair-text").display = False
        self.add_class("-writing")

    def _leave_editor(self) -> None:
        self.editor.display = False
        self.query_one("#pair-text").display = True
        self.remove_class("-writing")
        self.pairs.focus()

    @on(TextField.Left)
    def _editor_left(self, event: TextField.Left) -> None:
        event.stop()
        self._leave_editor()

    @on(TextField.Other)
    def _editor_other(self, event: TextField.Other) -> None:
        event.stop()
        other = "base_response" if event.field == "revised_response" else "revised_response"
        self._open_editor(event.index, other, self._text_now(event.index, other))

    @on(TextField.Kept)
    def _editor_kept(self, event: TextField.Kept) -> None:
        event.stop()
        if event.field == "note":
            kept = self._decide(event.index, "note", event.text)
        else:
            kept = self._decide(event.index, "edit", event.text, event.field)
        if kept:
            self._leave_editor()

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _figures(self) -> list[Figure]:
        return figures(self.store.review.counts, self._config, judged=not self.store.asks_people)

    def _draw_strips(self) -> None:
        pairs, store, config = self.pairs, self.store, self._config
        found, before, unjudged, total = self._figures(), dict(self._before), store.unjudged, len(store.rows)
        accepted = config.accept_quality is not None
        key = (tuple(found), tuple(before.items()), unjudged, total, accepted)
        self.query_one("#gate-strip", TextView).put(
            key, lambda width: gate_lines(found, accepted, before, unjudged, total, width)
        )
        waits = waiting_note(self._source, self._source.snapshot())
        note = Content.assemble(("! ", "bold $check-warning"), (waits, "$check-warning"))
        self.query_one("#pair-waiting", TextView).put(waits, (lambda width: paragraph(note, width)) if waits else None)
        query, order = pairs.query_, pairs.order
        told = f"{pairs.shown:,} of {plural(pairs.count, 'pair')}" if query.text else plural(pairs.count, "pair")
        told += f", {self._left_of_sample()} left to decide" if self._shows_sample() else ""
        self.query_one("#pair-count", TextView).put(
            (told, query.problem, query.text), lambda width: [count_line(told, query.text, query.problem, width)]
        )
        self.query_one("#pair-header", TextView).put(order, lambda width: [header_text(width - 1, order)])

    def _say(self, text: str, severity: str = "information") -> None:
        wizard_of(self).notify_user(text, severity)


TOLD: dict[str, str] = {
    "accept": "accepted",
    "reject": "rejected",
    "flip": "draft and revision swapped",
    "edit": "text saved",
    "note": "note saved",
}
WRITTEN: dict[str, str] = {"revised_response": "Revision", "base_response": "Draft", "note": "Note"}


def count_line(told: str, filtered: str, problem: str, width: int) -> Content:
    """The number of shown pairs, and the filter or its error."""
    if problem:
        return fit(Content.assemble((told, "$foreground"), "   ", (f"✗ {problem}", "$check-failed")), width)
    hint = clickable(Content.assemble(("/", "bold $key"), (" filter", "$muted")), "screen.press('slash')")
    if not filtered:
        return spread(Content.styled(told, "$foreground"), hint, width)
    return fit(
        Content.assemble((told, "$foreground"), ("   filter ", "$muted"), one_line(filtered, "$accent", 100)), width
    )
