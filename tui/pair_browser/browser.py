"""The pair browser: a filter, a list, the selected pair, and the gate's figures, which each decision updates."""

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
from engine.core.wording import plural
from engine.pairs.assessment.gate import Figure, figures
from engine.pairs.data.edits import Action
from tui.app_protocol import wizard_of
from tui.formatting import one_line
from tui.keys import bindings
from tui.pair_browser.gate_strip import gate_lines
from tui.pair_browser.pair_list import PairList, header_text
from tui.pair_browser.pair_text import pair_lines
from tui.pair_browser.pending import pending_note
from tui.pair_browser.query import HINT, Order
from tui.pair_browser.store import PairStore
from tui.runs.run_source import RunSource
from tui.widgets.layout import fit, paragraph, spread
from tui.widgets.row_list import RowList
from tui.widgets.text_field import TextField
from tui.widgets.text_view import TextView, clickable

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

POLL_SECONDS = 0.7
TYPING_SECONDS = 0.08
"""Seconds to wait for another letter before filtering."""
SAMPLE_FILTER = "verdict:sample"
SLOW_LIST = 20_000
"""With at least this many rows, a list that depends on verdicts is rearranged once at the end, not after each batch."""

log = logging.getLogger(__name__)


class PairBrowser(Vertical):
    """The list with the selected pair. Enter shows the pair full screen, Esc returns."""

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
        yield TextView(id="pair-pending")
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
        self.set_interval(POLL_SECONDS, self.poll)
        self.poll()

    @property
    def pairs(self) -> PairList:
        return self.query_one(PairList)

    @property
    def editor(self) -> TextField:
        return self.query_one(TextField)

    @property
    def _config(self) -> Stage3Config:
        return self._source.config

    # -- reading and checking -----------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Read new lines, unless the browser is hidden or already reading."""
        if self.is_attached and self._is_shown() and not self._is_polling():
            self._poll()

    def _is_shown(self) -> bool:
        return all(node.display for node in self.ancestors_with_self if hasattr(node, "display"))

    def _is_polling(self) -> bool:
        return any(worker.group == "pairs" and worker.is_running for worker in self.workers if worker.node is self)

    @work(group="pairs", exclusive=True, description="reads pairs.jsonl", exit_on_error=False)
    async def _poll(self) -> None:
        try:
            await self._read_new()
            await self._check_all()
        except OSError as error:
            log.warning("cannot read the pairs: %s", error)

    async def _read_new(self) -> None:
        store, pairs = self.store, self.pairs
        while update := await asyncio.to_thread(store.read):
            store.apply(update)
            if update.was_replaced:
                pairs.use(store.rows)
            elif update.rows:
                pairs.take_new()
            if update.scores or update.edits is not None:
                pairs.refresh()
                self.show_pair()
            self._draw_strips()
            if not update.rows:
                break
        self._draw_strips()  # the pending decisions depend on the run, too

    async def _check_all(self) -> None:
        store, pairs = self.store, self.pairs
        while batch := store.next_to_check(pairs.indices_on_screen()):
            store.apply_assessments(await asyncio.to_thread(store.check, batch))
            depends = bool(pairs.query_.parts) or pairs.order != Order()
            if depends and (len(store.rows) < SLOW_LIST or not store.unchecked):
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
        self.focus_pairs()

    def action_sample(self) -> None:
        """Show only the sample."""
        if self.store.unchecked:
            self._notify("Not all pairs are checked yet, and the sample is drawn from the usable ones.")
            return
        self.store.mark_sample()
        field = self.query_one("#pair-filter", Input)
        field.display, field.value = True, SAMPLE_FILTER
        self._filter()
        self.focus_pairs()
        self._notify(f"{self.pairs.row_count} pairs to decide about: y if the revision is better, else x or w.")

    def action_sort(self, by: int) -> None:
        self._sort(self.pairs.order.next(by))

    def action_reverse(self) -> None:
        self._sort(self.pairs.order.turned())

    def _sort(self, order: Order) -> None:
        self.pairs.sort(order)
        self._draw_strips()

    def step_back(self) -> bool:
        """Go one step back: leave the editor, close the filter, or leave the full screen. False if none applies."""
        if self.editor.display:
            self._leave_editor()
            return True
        field = self.query_one("#pair-filter", Input)
        if field.display:
            field.value = ""
            field.display = False
            self._filter()
            self.focus_pairs()
            return True
        if self.has_class("-zoomed"):
            self._zoom(False)
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
        self._zoom(not self.has_class("-zoomed"))

    def _zoom(self, zoomed: bool) -> None:
        """Show the pair full screen, or beside the list."""
        self.set_class(zoomed, "-zoomed")
        self.query_one("#pair-detail").can_focus = zoomed
        self.focus_pairs()

    def focus_pairs(self) -> None:
        """Focus the list or, while a pair is shown full screen and the list is hidden, the pair."""
        self.query_one("#pair-detail" if self.has_class("-zoomed") else "#pair-list").focus()

    def show_pair(self) -> None:
        """Read the record under the cursor from disk, and show it in full."""
        row = self.pairs.row
        view = self.query_one("#pair-text", TextView)
        if row is None:
            view.update(None, None)
            return
        key = (row.line, row.decision, row.reasons, row.usable, row.gain, row.score)
        try:
            record = self.store.record(row.line)
        except (OSError, ValueError) as error:
            message = one_line(f"Cannot read this line: {error}", "$check-warning")
            view.update((row.line, "unreadable"), lambda width: paragraph(message, width))
            return
        shown_row = row
        view.update(key, lambda width: pair_lines(record, shown_row, width))
        if self._shown_line != row.line:
            self._shown_line = row.line
            self.query_one("#pair-detail").scroll_home(animate=False)

    _shown_line: object = None

    def scroll_detail(self, pages: int) -> None:
        detail = self.query_one("#pair-detail")
        detail.scroll_relative(y=pages * max(detail.size.height - 1, 1), animate=False)

    def action_flagged(self, by: int) -> None:
        if not self.pairs.next_flagged(by):
            self._notify("No flagged pairs are left to decide about.")

    # -- decisions ----------------------------------------------------------------------------------------------------

    def action_decide(self, action: Action) -> None:
        if (index := self._index_to_decide()) is None or not self._decide(index, action):
            return
        if self._shows_sample():  # so that one key decides and shows the next pair
            self.pairs.next_undecided()

    def _shows_sample(self) -> bool:
        return self.query_one("#pair-filter", Input).value == SAMPLE_FILTER

    def _left_of_sample(self) -> int:
        return sum(row.sampled and not row.decided for row in self.store.rows)

    def action_undo(self) -> None:
        if not self._can_decide():
            return
        try:
            index = self.store.undo(self.pairs.index)
        except (OSError, ValueError, Stage3Error) as error:
            self._notify(f"Cannot undo: {error}", "error")
            return
        if index is None:
            self._notify("Nothing to undo.")
            return
        self.pairs.show_index(index)
        self._decided(f"Pair {self.store.rows[index].line.number + 1:,}: undid the last decision.")

    def _decide(self, index: int, action: Action, text: str | None = None, field: str | None = None) -> bool:
        before = self._figures()
        try:
            self.store.decide(index, action, text, field)
        except (OSError, ValueError, Stage3Error) as error:
            self._notify(f"Cannot save the decision: {error}", "error")
            return False
        self._before = self._before or {figure.name: figure.value for figure in before}
        row = self.store.rows[index]
        self._decided(f"Pair {row.line.number + 1:,}: {DECISION_NOTICES[action]}.")
        return True

    def _decided(self, notice: str) -> None:
        self.pairs.refresh()
        self.show_pair()
        self._draw_strips()
        pending = pending_note(self._source, self._source.snapshot())
        if not self._shows_sample():
            self._notify(f"{notice} {pending}".rstrip())
        elif not self._left_of_sample():  # the strip counts them; thirty notices would cover the pairs
            self._notify(f"The whole sample is decided: press r to continue. {pending}".rstrip())
        self.post_message(self.Decided())

    def _index_to_decide(self) -> int | None:
        if not self._can_decide():
            return None
        if self.pairs.index is None:
            self._notify("No pair is selected.")
        return self.pairs.index

    def _can_decide(self) -> bool:
        """Whether decisions are possible here; if not, a notice explains why."""
        if not self._source.allows_decisions:
            self._notify("Another process owns this run. To decide here, use `stage3-tui attach --allow-decisions`.")
        return self._source.allows_decisions

    # -- editing ------------------------------------------------------------------------------------------------------

    def action_edit(self) -> None:
        self._edit("revised_response")

    def action_note(self) -> None:
        if (index := self._index_to_decide()) is not None:
            decision = self.store.rows[index].decision
            self._open_editor(index, "note", "" if decision is None else decision.note)

    @work(group="editor", exclusive=True, description="waits for an editor", exit_on_error=False)
    async def action_edit_externally(self) -> None:
        from tui.terminal.external_editor import edit_externally

        if (index := self._index_to_decide()) is None:
            return
        before = self._current_text(index, "revised_response")
        try:
            text = await edit_externally(wizard_of(self).terminal_driver, self._source.run.folder, before)
        except (OSError, ValueError) as error:
            self._notify(str(error), "error")
            return
        if text is None or text == before:
            self._notify("No changes.")
        else:
            self._decide(index, "edit", text, "revised_response")

    def _edit(self, field: str) -> None:
        if (index := self._index_to_decide()) is not None:
            self._open_editor(index, field, self._current_text(index, field))

    def _current_text(self, index: int, field: str) -> str:
        """The current text of a field, after edits."""
        row = self.store.rows[index]
        edited = None if row.decision is None else getattr(row.decision, field)
        return edited if edited is not None else str(self.store.record(row.line).get(field) or "")

    def _open_editor(self, index: int, field: str, text: str) -> None:
        title = f"{FIELD_TITLES[field]} of pair {self.store.rows[index].line.number + 1:,}"
        self.editor.open(index, field, title, text, has_other=field != "note")
        self.query_one("#pair-text").display = False
        self.add_class("-writing")

    def _leave_editor(self) -> None:
        self.editor.display = False
        self.query_one("#pair-text").display = True
        self.remove_class("-writing")
        self.focus_pairs()

    @on(TextField.Discarded)
    def _editor_left(self, event: TextField.Discarded) -> None:
        event.stop()
        self._leave_editor()

    @on(TextField.SwitchRequested)
    def _editor_other(self, event: TextField.SwitchRequested) -> None:
        event.stop()
        other = "base_response" if event.field == "revised_response" else "revised_response"
        self._open_editor(event.index, other, self._current_text(event.index, other))

    @on(TextField.Saved)
    def _editor_kept(self, event: TextField.Saved) -> None:
        event.stop()
        if event.field == "note":
            saved = self._decide(event.index, "note", event.text)
        else:
            saved = self._decide(event.index, "edit", event.text, event.field)
        if saved:
            self._leave_editor()

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _figures(self) -> list[Figure]:
        return figures(self.store.review.counts, self._config, judged=not self.store.asks_people)

    def _draw_strips(self) -> None:
        pairs, store, config = self.pairs, self.store, self._config
        figures, before, unchecked, total = self._figures(), dict(self._before), store.unchecked, len(store.rows)
        accepted = config.accept_quality is not None
        key = (tuple(figures), tuple(before.items()), unchecked, total, accepted)
        self.query_one("#gate-strip", TextView).update(
            key, lambda width: gate_lines(figures, accepted, before, unchecked, total, width)
        )
        pending = pending_note(self._source, self._source.snapshot())
        note = Content.assemble(("! ", "bold $check-warning"), (pending, "$check-warning"))
        self.query_one("#pair-pending", TextView).update(
            pending, (lambda width: paragraph(note, width)) if pending else None
        )
        query, order = pairs.query_, pairs.order
        count = f"{pairs.row_count:,} of {plural(pairs.count, 'pair')}" if query.text else plural(pairs.count, "pair")
        count += f", {self._left_of_sample()} left to decide" if self._shows_sample() else ""
        self.query_one("#pair-count", TextView).update(
            (count, query.problem, query.text), lambda width: [count_line(count, query.text, query.problem, width)]
        )
        self.query_one("#pair-header", TextView).update(order, lambda width: [header_text(width - 1, order)])

    def _notify(self, text: str, severity: str = "information") -> None:
        wizard_of(self).notify_user(text, severity)


DECISION_NOTICES: dict[str, str] = {
    "accept": "accepted",
    "reject": "rejected",
    "flip": "draft and revision swapped",
    "edit": "text saved",
    "note": "note saved",
}
FIELD_TITLES: dict[str, str] = {"revised_response": "Revision", "base_response": "Draft", "note": "Note"}


def count_line(count: str, query: str, problem: str, width: int) -> Content:
    """The number of pairs shown, and the filter or what is wrong with it."""
    if problem:
        return fit(Content.assemble((count, "$foreground"), "   ", (f"✗ {problem}", "$check-failed")), width)
    hint = clickable(Content.assemble(("/", "bold $key"), (" filter", "$muted")), "screen.press('slash')")
    if not query:
        return spread(Content.styled(count, "$foreground"), hint, width)
    return fit(
        Content.assemble((count, "$foreground"), ("   filter ", "$muted"), one_line(query, "$accent", 100)), width
    )
