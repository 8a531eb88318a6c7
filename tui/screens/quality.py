"""Stage 8: the gate's figures, every pair to look at, and what people decide about them."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from engine import names
from engine.state import RunState, StageState
from tui.screens.base import StageView
from tui.widgets.layout import EMPTY
from tui.widgets.pair_browser import PairBrowser
from tui.widgets.paper import Paper

GATE, PAIRS, OPTIONS = range(3)


class QualityView(StageView):
    STAGE = "quality"
    PAGES = ("Gate", "Pairs", "Options")

    def compose_page(self, page: int) -> ComposeResult:
        if page == GATE:
            yield Paper(id="extra")
            yield Paper(id="checks")
        elif page == PAIRS:
            run = self.source.run
            yield PairBrowser(run / names.PAIRS_JSONL, scores=run / names.SCORES_JSONL, id="browser")
        else:
            yield Paper(id="options")

    def checks_title(self) -> str:
        return "The gate: each figure beside its threshold"

    def on_mount(self) -> None:
        self.read_decisions()

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        verdict = gate_line(stage)
        self.paper("extra").put(verdict.plain, (lambda width: [EMPTY, verdict]) if verdict else None)

    # -- what people decide -------------------------------------------------------------------------------------------

    def decide(self, action: str) -> str:
        """Append a decision about the pair under the cursor to `edits.jsonl`; what was done, in a sentence."""
        from engine.pairs.edits import write_edit
        from tui.tail import read_line

        row = self.query_one(PairBrowser).pairs.row
        if row is None:
            return "There is no pair under the cursor."
        pair_id = read_line(self.source.run / names.PAIRS_JSONL, row.line).get("id")
        if not pair_id:
            return "This pair has no id: another program wrote it, and a decision about it could not be kept."
        write_edit(self.source.run / names.EDITS_JSONL, str(pair_id), action)
        self.read_decisions()
        decided = self.query_one(PairBrowser).decisions.get(str(pair_id), "as the detectors find it")
        return f"Pair {row.line.number + 1}: {decided}."

    def read_decisions(self) -> None:
        from engine.pairs.edits import Decision, read_edits

        def told(decision: Decision) -> str:
            words = {True: "accepted by a person", False: "rejected by a person", None: ""}[decision.accepted]
            flipped = "flipped: the draft is chosen" if decision.flipped else ""
            texts = (decision.revised_response, decision.base_response)
            edited = "edited" if any(text is not None for text in texts) else ""
            return ", ".join(word for word in (words, flipped, edited, decision.note) if word)

        browser = self.query_one(PairBrowser)
        decisions = read_edits(self.source.run / names.EDITS_JSONL)
        browser.decisions = {pair_id: told(decision) for pair_id, decision in decisions.items()}
        browser.show_pair()


def gate_line(stage: StageState) -> Content:
    """Whether the gate is open, in one line."""
    if stage.status == "refused":
        return Content.assemble(("⊘ The gate is shut.", "bold $stage-refused"))
    if stage.status == "done" and stage.checks:
        opened_by_a_person = any(check.status == "failed" for check in stage.checks)
        told = "✓ A person opened the gate." if opened_by_a_person else "✓ The gate is open."
        return Content.styled(told, "bold $check-warning" if opened_by_a_person else "bold $stage-done")
    return EMPTY
