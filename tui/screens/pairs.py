"""Stage 7: how many pairs are usable, why the others are not, and the newest pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content

from engine.core.events import PairFailed, PairMade, Servers
from engine.pairs.data.record import DRAFT_AND_REVISION, text_labels
from engine.run.state import RunState, StageState
from tui.formatting import one_line, percent
from tui.screens.base import StageView
from tui.server_summary import any_unavailable, servers_summary
from tui.widgets.gauge import bar, forecast_mark
from tui.widgets.layout import EMPTY, fit
from tui.widgets.side_by_side import side_by_side
from tui.widgets.stage_sections import histogram, section
from tui.widgets.text_view import TextView, clickable

CHARACTERS_SHOWN = 600
"""Characters shown of each text of the newest pair."""
FEED_MARK = 16
"""Cells for the outcome of a prompt."""


class PairsView(StageView):
    STAGE = "pairs"
    OWN_PAGES = ("Progress",)

    def compose_page(self, page: str) -> ComposeResult:
        yield TextView(id="servers")
        with Horizontal(id="pairs-progress"):
            with VerticalScroll(id="progress-left", can_focus=False):
                yield TextView(id="share")
                yield TextView(id="reasons")
                yield TextView(id="checks")
            with VerticalScroll(id="progress-right", can_focus=False):
                yield TextView(id="newest")
                yield TextView(id="feed")

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        self._draw_servers(state, stage)
        made, failures, newest = state.pairs_made, state.pair_failures, state.newest_pairs
        threshold = self.source.config.min_usable_share
        any_tried = bool(made or failures)
        self.text_view("share").update(
            (made, failures), (lambda width: share_lines(made, failures, threshold, width)) if any_tried else None
        )
        self.text_view("reasons").update(failures, (lambda width: reason_lines(failures, width)) if failures else None)
        self.text_view("feed").update(newest, (lambda width: feed_lines(newest, width)) if newest else None)
        names = text_labels(self.source.config.method)
        last = newest[-1] if newest else None
        self.text_view("newest").update(
            last, (lambda width: newest_lines(last, width, names)) if last is not None else None
        )

    def _draw_servers(self, state: RunState, stage: StageState) -> None:
        servers = state.servers if stage.status == "running" else {}
        shown = servers_summary(servers)
        gap = self.gap
        self.text_view("servers").update(
            (shown, len(gap)), (lambda width: [*gap, *servers_line(servers, width)]) if shown else None
        )


def servers_line(servers: Mapping[str, Servers], width: int) -> list[Content]:
    """The state of the servers, in one line."""
    style = "$check-warning" if any_unavailable(servers) else "$muted"
    return [Content.styled(servers_summary(servers), style).truncate(width, ellipsis=True)]


def share_lines(made: int, failures: Mapping[str, int], threshold: float, width: int) -> list[Content]:
    """The share of prompts with a usable pair, against the gate's threshold."""
    tried = made + sum(failures.values())
    share = made / tried
    style = "$pair-ok" if share >= threshold else "$check-warning"
    figures = Content.assemble(
        (f"{percent(share)} usable", f"bold {style}"),
        (f"  {made:,} of {tried:,}", "$foreground"),
        (f"   gate ┃{percent(threshold)}", "$muted"),
    )
    share_bar = bar(share, min(width, 60), style=style, marks=(forecast_mark(threshold),))
    return [EMPTY, figures.truncate(width, ellipsis=True), share_bar]


def reason_lines(failures: Mapping[str, int], width: int) -> list[Content]:
    return [EMPTY, section("Reasons", "", width), *histogram(failures, min(width, 70), 8)]


def feed_lines(newest: Sequence[PairMade | PairFailed], width: int) -> list[Content]:
    """The newest prompts and their outcomes, newest first, one per line."""
    browse = clickable(Content.assemble(("b", "bold $key"), (" browses all pairs", "$muted")), "screen.browse")
    lines = [EMPTY, section("Newest", "", width - browse.cell_length - 1) + Content(" ") + browse]
    for event in reversed(newest):
        made = isinstance(event, PairMade)
        mark = Content.styled("✓ ok" if made else "✗ ", "$pair-ok" if made else "$pair-bad")
        if isinstance(event, PairFailed):
            mark = mark + one_line(event.reason, "$pair-bad", FEED_MARK - 3)
        lines.append(
            fit(mark, FEED_MARK)
            + one_line(event.prompt, "$foreground", 240).truncate(max(width - FEED_MARK, 8), ellipsis=True)
        )
    return lines


def newest_lines(
    event: PairMade | PairFailed, width: int, names: tuple[str, str] = DRAFT_AND_REVISION
) -> list[Content]:
    prompt = one_line(event.prompt, "$foreground", 300).truncate(width, ellipsis=True)
    texts = event.base_response[:CHARACTERS_SHOWN], event.revised_response[:CHARACTERS_SHOWN]
    return [EMPTY, section("Prompt", "", width), prompt, EMPTY, *side_by_side(*texts, width, names)]
