"""The main screen: title, list of stages, selected stage, machine and keys."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from functools import partial

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from engine.core.options import Option
from engine.core.stage_table import STAGES
from engine.run.state import RunState
from tui.app_protocol import wizard_of
from tui.formatting import approx_duration, duration, short_path
from tui.keys import Key, bindings, footer_keys
from tui.runs.run_source import RunSource
from tui.screens.adapter import AdapterView
from tui.screens.base import StageView
from tui.screens.credentials import CredentialsView
from tui.screens.dependencies import DependenciesView
from tui.screens.packaging import PackagingView
from tui.screens.pairs import PairsView
from tui.screens.preflight import PreflightView
from tui.screens.quality import QualityView
from tui.screens.toolchain import ToolchainView
from tui.screens.training import TrainingView
from tui.screens.workspace import WorkspaceView
from tui.widgets.options_editor import OptionsEditor
from tui.widgets.rail import Rail
from tui.widgets.run_progress import seconds_remaining
from tui.widgets.status_lines import keys_line, status_line, title_line
from tui.widgets.text_view import TextView
from tui.widgets.token_field import TokenField

VIEWS: dict[str, type[StageView]] = {
    view.STAGE: view
    for view in (
        WorkspaceView,
        ToolchainView,
        CredentialsView,
        DependenciesView,
        AdapterView,
        PreflightView,
        PairsView,
        QualityView,
        TrainingView,
        PackagingView,
    )
}

MIN_COLUMNS, MIN_ROWS = 80, 24
ROOM_FOR_TWO_TEXTS = 190
"""Columns needed to show draft and revision side by side beside the list."""
RETRY_SECONDS = 0.1
"""Seconds until an action is tried again that came before the screen was ready."""


class MainScreen(Screen[None]):
    """Creates a view on first use, and keeps it."""

    BINDINGS = bindings("stage")

    # No field has the focus at first: the first key pressed must not end up in the token.
    AUTO_FOCUS = ""

    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (100, "-wide"), (150, "-very-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    def __init__(self, source: RunSource, first: str) -> None:
        """first   the stage to show at the start"""
        super().__init__(id="main")
        self.source = source
        self.selected = first
        self.following = True
        """Whether to select the running stage, as long as the user does not select another."""
        self._followed = source.snapshot().latest
        self._views: dict[str, StageView] = {first: VIEWS[first](source)}
        self.title_view, self.rail, self.body = TextView(id="title"), Rail(id="rail"), Container(id="body")
        self.status_view, self.keys_view = TextView(id="status"), TextView(id="keys")

    def compose(self) -> ComposeResult:
        yield Static(id="too-small", markup=False)
        yield self.title_view
        with Container(id="middle"):
            yield self.rail
            with self.body:
                yield self._views[self.selected]
        yield self.status_view
        yield self.keys_view

    @property
    def is_ready(self) -> bool:
        """Whether all parts exist: not before mounting, and not during removal."""
        parts = (self.title_view, self.rail, self.body, self.status_view, self.keys_view)
        return self.is_mounted and all(part.is_attached for part in parts) and self.view is not None

    @property
    def view(self) -> StageView | None:
        """The view of the selected stage; None before mounting."""
        view = self._views.get(self.selected)
        return view if view is not None and view.is_mounted and view.is_attached else None

    # -- drawing ------------------------------------------------------------------------------------------------------

    async def draw(self, state: RunState, status_note: str, now: float) -> bool:
        """Show `state`, and follow the running stage. Returns False if a part could not be drawn yet."""
        await self._follow(state)
        if not self.is_ready:
            return False
        current, folder = state.current, self.source.run.folder
        key = (
            status_note,
            state.finished,
            state.running,
            current,
            duration(now - (current.started or now)) if current else "",
            approx_duration(seconds_remaining(state, now)),
        )
        self.title_view.update(key, lambda width: [title_line(state, folder.name, status_note, now, width)])
        self.rail.update(state, self.selected, now)
        self.status_view.update(
            (state.telemetry[-1:], state.forecast),
            lambda width: [status_line(state, platform.node(), short_path(folder), width)],
        )
        keys = self.keys_offered()
        self.keys_view.update(keys, lambda width: [keys_line(keys, width)])
        return self.view is not None and await self.view.draw(state, now)

    async def _follow(self, state: RunState) -> None:
        """Show the running stage, or one that started and failed since the last call."""
        stage = state.current.name if state.current is not None else state.latest
        is_news = state.current is not None or state.latest != self._followed
        self._followed = state.latest
        if self.following and is_news and stage and stage != self.selected:
            await self.show_stage(stage)

    def keys_offered(self) -> tuple[Key, ...]:
        """The keys in the footer: only those that work now, those of the focused part first."""
        return tuple(key for key in footer_keys(self.places()) if wizard_of(self).is_key_enabled(key))

    def places(self) -> tuple[str, ...]:
        """The places whose keys work now, innermost first."""
        focused = self.focused
        if isinstance(focused, (Input, TokenField)):
            return ("field",)  # letters go to the field
        nodes = focused.ancestors_with_self if focused else ()
        inner = [place for node in nodes if (place := getattr(node, "PLACE", ""))]
        return ("text",) if inner[:1] == ["text"] else (*dict.fromkeys(inner), "stage", "app")

    async def show_stage(self, stage: str) -> None:
        self.selected = stage
        self.set_focus(None)
        for name, view in self._views.items():
            view.display = name == stage
        if stage not in self._views:
            self._views[stage] = VIEWS[stage](self.source)
            await self.body.mount(self._views[stage])

    def on_resize(self, event: events.Resize) -> None:
        size = event.size
        too_small = size.width < MIN_COLUMNS or size.height < MIN_ROWS
        self.set_class(too_small, "-too-small")
        self.set_class(size.width >= ROOM_FOR_TWO_TEXTS, "-huge")
        self.query_one("#too-small", Static).update(
            Content(
                f"This terminal has {size.width} columns and {size.height} rows; "
                f"the wizard needs {MIN_COLUMNS} and {MIN_ROWS}. "
                "Enlarge it, or use `stage3-tui status` and `stage3-tui --auto`. The run continues; q quits."
            )
        )

    # -- what the keys do ---------------------------------------------------------------------------------------------

    async def select_stage(self, stage: str) -> None:
        """Show the stage that the user selected; the next keys apply to it."""
        current = wizard_of(self).shown_state.current
        self.following = current is not None and current.name == stage
        if not self.is_ready:  # a key pressed before the first screen was ready
            self.set_timer(RETRY_SECONDS, partial(self.select_stage, stage))
            return
        await self.show_stage(stage)
        wizard_of(self).tick_soon()

    async def action_move(self, by: int) -> None:
        number = STAGES.index(self.selected) + by
        if 0 <= number < len(STAGES):
            await self.select_stage(STAGES[number])

    async def action_go(self, number: int) -> None:
        await self.select_stage(STAGES[number - 1])

    def action_follow(self) -> None:
        self.follow()

    def follow(self) -> None:
        """Show the running stage and its progress."""
        self.following = True
        for view in self._views.values():
            view.forget_choice()
        wizard_of(self).tick_soon()

    def action_scroll(self, pages: int) -> None:
        if self.view is not None:
            self.view.scroll_page(pages)

    async def action_turn(self, by: int) -> None:
        if self.view is not None:
            await self.view.turn(by)

    async def action_turn_to(self, page: str) -> None:
        if self.view is not None and page in self.view.pages:
            await self.view.turn_to(page)

    async def action_options(self) -> None:
        if self.view is None:
            return
        if self.view.page == self.view.OPTIONS:
            await self.view.turn_to(self.view.OWN_PAGES[0])
        elif self.view.OPTIONS in self.view.pages:
            await self.view.turn_to(self.view.OPTIONS)

    async def show_option(self, option: Option) -> None:
        """Open the form that has the option, with the cursor on it."""
        await self.select_stage(option.form_stage)
        view = self.view
        if self.selected != option.form_stage or view is None:
            self.set_timer(RETRY_SECONDS, partial(self.show_option, option))
            return
        if view.page != view.OPTIONS:
            await view.turn_to(view.OPTIONS)
        if not view.is_built(view.OPTIONS):
            self.set_timer(RETRY_SECONDS, partial(self.show_option, option))
            return
        await view.draw(wizard_of(self).shown_state, time.time())  # creates the rows, so that the cursor can go to one
        rows = view.query_one(f"#page-{view.OPTIONS.lower()} OptionsEditor", OptionsEditor).rows
        rows.focus()
        rows.go_to(option.name)

    async def action_browse(self) -> None:
        """Open the pair browser from any screen."""
        await self.select_stage(QualityView.STAGE)
        self.call_later(self._browse)

    async def _browse(self) -> None:
        if self.selected != QualityView.STAGE or self.view is None:
            self.set_timer(RETRY_SECONDS, self._browse)
            return
        await self.view.turn_to(QualityView.PAIRS)

    def action_zoom(self) -> None:
        if isinstance(self.view, TrainingView):
            self.view.show_curves(self.view.curves.next_zoom())

    def action_smooth(self) -> None:
        """Show or hide the moving average."""
        if isinstance(self.view, TrainingView):
            self.view.show_curves(replace(self.view.curves, smooth=not self.view.curves.smooth))

    def action_log_scale(self) -> None:
        if isinstance(self.view, TrainingView):
            self.view.show_curves(replace(self.view.curves, log=not self.view.curves.log))

    def action_export(self) -> None:
        """Save the charts as a table and a picture."""
        if not isinstance(self.view, TrainingView):
            return
        if self.source.hands_off:
            wizard_of(self).notify_user("This screen is read-only and writes no files.")
            return
        try:
            written = self.view.export_curves()
        except OSError as error:
            wizard_of(self).notify_user(f"Cannot save the charts: {error}", "error")
            return
        names = " and ".join(str(path.relative_to(self.source.run.folder)) for path in written or ())
        wizard_of(self).notify_user(f"Saved {names} in the run folder." if written else "No steps yet.")

    def action_answer(self, by: int) -> None:
        """Show the answers to another held-out prompt."""
        if isinstance(self.view, TrainingView):
            self.view.show_answers(self.view.answers.moved(by))

    def action_filter_answers(self, kind: str = "") -> None:
        """Show only the answers of one kind; without `kind`, those of the next kind."""
        if isinstance(self.view, TrainingView):
            shown = self.view.answers
            self.view.show_answers(shown.of_kind(kind) if kind else shown.of_next_kind())

    def action_enter(self) -> None:
        """Focus the list or form of the page."""
        if self.view is not None:
            self.view.focus_options() if self.view.page == self.view.OPTIONS else self.view.focus_page()

    def action_presets(self) -> None:
        if isinstance(self.view, WorkspaceView):
            wizard_of(self).choose_preset()

    def action_log_in(self) -> None:
        if isinstance(self.view, CredentialsView):
            wizard_of(self).log_in()

    def action_copy(self) -> None:
        if self.view is not None:
            wizard_of(self).copy(*self.view.copy_text(wizard_of(self).shown_state))

    def action_copy_line(self, number: int) -> None:
        """Copy a command that was clicked."""
        if isinstance(self.view, PackagingView):
            wizard_of(self).copy(*self.view.command_at(number, wizard_of(self).shown_state))

    def action_press(self, keys: str) -> None:
        """A click in the footer presses that key."""
        self.app.simulate_key(keys.partition(",")[0])

    @on(Rail.Chosen)
    async def _rail_chosen(self, event: Rail.Chosen) -> None:
        await self.select_stage(event.stage)

    @on(StageView.Turned)
    def _turned(self) -> None:
        wizard_of(self).tick_soon()
