"""Stage 8: the gate's figures, the pair browser, and people's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget

from engine.pairs.assessment.figure_names import BETTER_BY_PEOPLE
from engine.run.state import RunState, StageState
from tui.pair_browser.pending import pending_note
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from tui.pair_browser.browser import PairBrowser


class QualityView(StageView):
    STAGE = "quality"
    GATE, PAIRS = OWN_PAGES = ("Gate", "Pairs")
    BARE_PAGES = (PAIRS, StageView.OPTIONS)

    def compose_page(self, page: str) -> ComposeResult:
        if page == self.GATE:
            yield TextView(id="extra")
            yield TextView(id="checks")
        else:
            from tui.pair_browser.browser import PairBrowser

            yield PairBrowser(self.source, id="browser")

    def page_container(self, page: str) -> Widget:
        if page != self.PAIRS:
            return super().page_container(page)
        container = Vertical(id=f"page-{page.lower()}", classes="page")
        container.display = page == self.page
        return container

    @property
    def browser(self) -> PairBrowser | None:
        """The browser, once opened."""
        found = self.query("#browser")
        return found.first() if found else None  # type: ignore[return-value]

    def checks_title(self) -> str:
        return "The gate: figures and thresholds"

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        if self.page == self.GATE:
            lines = [line for line in (gate_line(stage), ask_people_line(stage), self._pending(state)) if line]
            text = tuple(line.plain for line in lines)
            self.text_view("extra").update(
                text,
                (lambda width: [EMPTY, *(each for line in lines for each in paragraph(line, width))])
                if lines
                else None,
            )

    def _pending(self, state: RunState) -> Content:
        """A note about decisions that the stage has not read; empty if there are none."""
        note = pending_note(self.source, state)
        return Content.styled(f"! {note}", "$check-warning") if note else EMPTY

    def focus_page(self) -> None:
        if self.page == self.PAIRS and self.browser is not None:
            self.browser.focus_pairs()
            self.browser.poll()
        else:
            super().focus_page()

    def scroll_page(self, pages: int) -> None:
        if self.page == self.PAIRS and self.browser is not None:
            self.browser.scroll_detail(pages)
        else:
            super().scroll_page(pages)

    def step_back(self) -> bool:
        if self.page == self.PAIRS and self.browser is not None:
            return self.browser.step_back()
        return super().step_back()


def gate_line(stage: StageState) -> Content:
    """Whether the gate is open, in one line."""
    if stage.status == "refused":
        return Content.assemble(("⊘ The gate is shut.", "bold $stage-refused"))
    if stage.status == "done" and stage.checks:
        opened_by_user = any(check.status == "failed" for check in stage.checks)
        text = "✓ You opened the gate." if opened_by_user else "✓ The gate is open."
        return Content.styled(text, "bold $check-warning" if opened_by_user else "bold $stage-done")
    return EMPTY


def ask_people_line(stage: StageState) -> Content:
    """How to decide about the sample, if the stage needs it."""
    title = BETTER_BY_PEOPLE.replace("_", " ")
    if not any(check.name == title and check.status == "failed" for check in stage.checks):
        return EMPTY
    return Content.styled(
        "No judge passed its exam: press b, then S, to decide about a sample of pairs; then press r.", "$check-warning"
    )
