"""Stage 7: pairs being made. How many are usable so far, why the others are not, and the newest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content

from engine import names
from engine.events import PairFailed, PairMade
from engine.state import RunState, StageState
from tui.screens.base import StageView
from tui.widgets.gauge import bar
from tui.widgets.layout import EMPTY, fit
from tui.widgets.pair_browser import PairBrowser
from tui.widgets.pair_text import draft_and_revision
from tui.widgets.paper import Paper
from tui.widgets.parts import histogram, section
from tui.widgets.words import line, percent

MAKING, PAIRS, OPTIONS = range(3)


class PairsView(StageView):
    STAGE = "pairs"
    PAGES = ("Making", "Pairs", "Options")

    def compose_page(self, page: int) -> ComposeResult:
        if page == MAKING:
            with Horizontal(id="making"):
                with VerticalScroll(id="making-left", can_focus=False):
                    yield Paper(id="share")
                    yield Paper(id="reasons")
                    yield Paper(id="checks")
                with VerticalScroll(id="making-right", can_focus=False):
                    yield Paper(id="newest")
                    yield Paper(id="feed")
        elif page == PAIRS:
            yield PairBrowser(self.source.run / names.PAIRS_JSONL, from_the_end=True, id="browser")
        else:
            yield Paper(id="options")

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        made, failures, newest = state.pairs_made, state.pair_failures, state.newest_pairs
        least = self.source.config.min_usable_share
        self.paper("share").put((made, failures), lambda width: share_lines(made, failures, least, width))
        self.paper("reasons").put(failures, (lambda width: reason_lines(failures, width)) if failures else None)
        self.paper("feed").put(newest, (lambda width: feed_lines(newest, width)) if newest else None)
        last = newest[-1] if newest else None
        self.paper("newest").put(last, (lambda width: newest_lines(last, width)) if last is not None else None)


def share_lines(made: int, failures: Mapping[str, int], least: float, width: int) -> list[Content]:
    """How many of the prompts gave a usable pair, against what the gate will ask for."""
    tried = made + sum(failures.values())
    if not tried:
        return [EMPTY, Content.styled("No pair yet.", "$muted")]
    share = made / tried
    style = "$pair-ok" if share >= least else "$check-warning"
    told = Content.assemble(
        (f"{percent(share)} usable", f"bold {style}"),
        (f"  {made:,} of {tried:,}", "$foreground"),
        (f"   gate: {percent(least)}", "$muted"),
    )
    return [EMPTY, told.truncate(width, ellipsis=True), bar(share, min(width, 60), style=style, peak=least)]


def reason_lines(failures: Mapping[str, int], width: int) -> list[Content]:
    return [EMPTY, section("Why not", "", width), *histogram(failures, min(width, 70), 8)]


def feed_lines(newest: Sequence[PairMade | PairFailed], width: int) -> list[Content]:
    """The newest first, one on each line."""
    lines = [EMPTY, section("Newest", "", width)]
    for event in reversed(newest):
        made = isinstance(event, PairMade)
        mark = Content.styled("✓ ok" if made else "✗ ", "$pair-ok" if made else "$pair-bad")
        if isinstance(event, PairFailed):
            mark = mark + line(event.reason, "$pair-bad", 12)
        lines.append(fit(mark, 15) + line(event.prompt, "$foreground", 240).truncate(max(width - 15, 8), ellipsis=True))
    return lines


def newest_lines(event: PairMade | PairFailed, width: int) -> list[Content]:
    prompt = line(event.prompt, "$foreground", 300).truncate(width, ellipsis=True)
    texts = draft_and_revision(event.base_response[:600], event.revised_response[:600], width)
    return [EMPTY, section("Prompt", "", width), prompt, EMPTY, *texts]
