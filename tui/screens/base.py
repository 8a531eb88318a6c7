"""The parts that all stages' screens share: heading, views, failure, progress, next actions, checks and options."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from engine.core import layout
from engine.core.events import Check
from engine.core.options import Option, options
from engine.run.state import RunState, StageState
from tui.app_protocol import wizard_of
from tui.formatting import safe_text
from tui.runs.run_source import RunSource
from tui.screens.stage_descriptions import description_of
from tui.widgets import stage_sections
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.options_editor import OptionsEditor
from tui.widgets.text_view import TextView

RUN_OPTIONS = ("output_dir", "seed", "device", "dtype")

STAGE_OPTIONS: dict[str, tuple[str, ...]] = {
    "workspace": (*RUN_OPTIONS, "Workspace"),
    "toolchain": ("install",),
    "credentials": (
        "Hugging Face",
        "base_model_id",
        "base_model_revision",
        "adapter_path",
        "dataset",
        "dataset_revision",
    ),
    "dependencies": ("install", "device"),
    "adapter": ("Models",),
    "preflight": (
        "device",
        "dtype",
        "pilot_prompts",
        "max_length",
        "max_new_tokens",
        "generation_batch_size",
        "per_device_train_batch_size",
    ),
    "pairs": ("Pairs", "Server"),
    "quality": ("Quality", "server_url", "server_model", "judge_url", "judge_model", "judge_api_key_env"),
    "training": ("Training",),
    "packaging": ("output_dir", "Packaging"),
}
"""The options on a stage's screen, by names of groups and of single options."""

NOT_EDITABLE = ("output_dir",)
"""Another output folder is another run, so it can only be set on the command line."""

READABLE = 110
"""Maximum width of sentences, in cells."""

OWNED_BY_ANOTHER = "Another process owns this run: change its options there."


def options_of(stage: str) -> tuple[Option, ...]:
    names = STAGE_OPTIONS[stage]
    return tuple(option for option in options() if option.name in names or option.group in names)


def done_stages(state: RunState) -> dict[str, float | None]:
    """The stages that are done, each with the seconds it took."""
    return {name: stage.elapsed(0.0) for name, stage in state.stages.items() if stage.status in ("done", "skipped")}


class StageView(Vertical):
    """The body of the screen for one stage. It receives the state and draws what changed."""

    STAGE: ClassVar[str]
    OPTIONS: ClassVar[str] = "Options"
    OWN_PAGES: ClassVar[tuple[str, ...]] = ("Overview",)
    """The stage's own views, shown one at a time; its options are a further one."""
    BARE_PAGES: ClassVar[tuple[str, ...]] = (OPTIONS,)
    """The views without summary and next actions above them, because they need the room."""

    empty_pages: tuple[str, ...] = ()
    """The stage's own pages that have nothing to show in this run."""

    class Turned(Message):
        """The user switched to another view."""

    def __init__(self, source: RunSource) -> None:
        super().__init__(id=f"view-{self.STAGE}", classes="stage-view")
        self.source = source
        self.page = self.OWN_PAGES[0]
        self._page_chosen = False
        """Whether the user chose the page, so that it stays."""
        self._being_built: set[str] = set()
        self._built: set[str] = {self.page}
        """The pages whose widgets exist; they are created on first use, which takes a moment."""

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def compose_page(self, page: str) -> ComposeResult:
        """The widgets of one of the stage's own pages."""
        yield TextView(id="extra")
        yield TextView(id="checks")

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        """Draw the stage's own parts of the visible page."""

    def page_for(self, state: RunState) -> str:
        """The page to show until the user chooses one."""
        return self.OWN_PAGES[0]

    def focus_page(self) -> None:
        """Focus the list or field of the page that the user switched to."""
        self.screen.set_focus(None)

    def copy_text(self, state: RunState) -> tuple[str, str]:
        """(the text that the key c copies, its name)."""
        return str(self.source.run.folder), "the run folder's path"

    def step_back(self) -> bool:
        """Esc: go one step back inside the page. False if there is none."""
        return self.page == self.OPTIONS and self.page in self._built and self.options_editor.step_back()

    # -- pages --------------------------------------------------------------------------------------------------------

    @property
    def all_pages(self) -> tuple[str, ...]:
        return (*self.OWN_PAGES, self.OPTIONS) if options_of(self.STAGE) else self.OWN_PAGES

    @property
    def pages(self) -> tuple[str, ...]:
        """The pages that have something to show."""
        return tuple(page for page in self.all_pages if page not in self.empty_pages)

    def compose(self) -> ComposeResult:
        yield TextView(id="heading")
        yield TextView(id="failure")
        yield TextView(id="progress")
        yield TextView(id="summary")
        for page in self.all_pages:
            with self.page_container(page):
                if page == self.page:
                    yield from self._page_widgets(page)

    def page_container(self, page: str) -> Widget:
        container = Vertical if page == self.OPTIONS else VerticalScroll
        widget = container(id=f"page-{page.lower()}", classes="page")
        widget.can_focus = False
        widget.display = page == self.page
        return widget

    async def turn_to(self, page: str, *, chosen: bool = True) -> None:
        self._page_chosen = self._page_chosen or chosen
        self.page = page
        for one in self.all_pages:
            self._container(one).display = one == page
        if page not in self._built and page not in self._being_built:
            self._being_built.add(page)
            await self._container(page).mount(*self._page_widgets(page))
            self._built.add(page)
        if chosen and page in self._built:
            self.focus_options() if page == self.OPTIONS else self.focus_page()
            self.post_message(self.Turned())

    async def turn(self, by: int) -> None:
        await self.turn_to(self.pages[(self.pages.index(self.page) + by) % len(self.pages)])

    def is_built(self, page: str) -> bool:
        """Whether the page's widgets exist."""
        return page in self._built

    def forget_choice(self) -> None:
        """Show the stage's default page."""
        self._page_chosen = False

    def focus_options(self) -> None:
        self.options_editor.rows.focus()

    @property
    def options_editor(self) -> OptionsEditor:
        return self._container(self.OPTIONS).query_one(OptionsEditor)

    def scroll_page(self, pages: int) -> None:
        page = self._container(self.page)
        page.scroll_relative(y=pages * max(page.size.height - 1, 1), animate=False)

    def _container(self, page: str) -> Widget:
        return self.query_one(f"#page-{page.lower()}")

    def _page_widgets(self, page: str) -> ComposeResult:
        if page == self.OPTIONS:
            yield OptionsEditor(options_of(self.STAGE), fixed=NOT_EDITABLE)
        else:
            yield from self.compose_page(page)

    # -- drawing ------------------------------------------------------------------------------------------------------

    async def draw(self, state: RunState, now: float) -> bool:
        """Show `state`; cheap if nothing changed. Returns False while the page is still being built: draw again."""
        stage = state.stages[self.STAGE]
        if not self._page_chosen and self.page_for(state) != self.page:
            await self.turn_to(self.page_for(state), chosen=False)
        self._draw_heading(state, stage, now)
        self._draw_failure(stage)
        self._draw_progress(stage)
        self._draw_summary(state, stage)
        if self.page not in self._built:
            return False
        if self.page == self.OPTIONS:
            read_only_reason = OWNED_BY_ANOTHER if self.source.read_only else ""
            self.options_editor.update(self.source.config, read_only_reason, done_stages(state))
        else:
            self.draw_checks(stage)
            self.draw_page(state, stage, now)
        return True

    @property
    def compact(self) -> bool:
        """Whether the screen has few rows."""
        return self.screen.has_class("-short")

    @property
    def gap(self) -> list[Content]:
        """A blank line, if there is room."""
        return [] if self.compact else [EMPTY]

    def text_view(self, name: str) -> TextView:
        return self.query_one(f"#{name}", TextView)

    def _draw_heading(self, state: RunState, stage: StageState, now: float) -> None:
        pages, page, compact = self.pages, self.page, self.compact
        expected = state.expected_seconds(self.STAGE, now) if stage.status in ("running", "waiting") else None
        key = (stage.status, stage.reused, int(stage.elapsed(now) or 0), int(expected or 0), page, compact)
        self.text_view("heading").update(
            key, lambda width: stage_sections.heading(stage, pages, page, now, expected, width, compact=compact)
        )

    def _draw_failure(self, stage: StageState) -> None:
        failure = stage.failure
        box = self.text_view("failure")
        box.set_class(failure is not None and failure.outcome == "stopped", "-stopped")
        log_path = str(self.source.run / layout.RUN_LOG)
        shown = failure if self.page not in self.BARE_PAGES else None
        box.update(
            shown, (lambda width: stage_sections.failure_box(shown, log_path, width)) if shown is not None else None
        )

    def _draw_progress(self, stage: StageState) -> None:
        shown = stage.progress if stage.status in ("running", "stopped", "failed") else None
        gap = self.gap
        self.text_view("progress").update(
            (shown, len(gap)),
            (lambda width: [*gap, *stage_sections.progress_line(shown, width)]) if shown is not None else None,
        )

    def _draw_summary(self, state: RunState, stage: StageState) -> None:
        """Draw the result in a line or two, or what the stage will do, and the possible actions."""
        waits = stage.status == "waiting" and not stage.summary
        text = description_of(self.STAGE, self.source.config, state) if waits else (stage.summary,)
        bare = self.page in self.BARE_PAGES
        sentences = () if bare or stage.failure is not None else tuple(filter(None, text))
        actions = (
            () if bare or self.source.read_only or self.source.running else stage_sections.actions_for(stage.status)
        )
        gap = self.gap

        def draw(width: int) -> list[Content]:
            lines = list(gap)
            for sentence in sentences:
                lines += paragraph(safe_text(sentence, "$foreground", 600), min(width, READABLE))
            return [*lines, *(gap if sentences and actions else ()), *stage_sections.action_hints(actions, width)]

        self.text_view("summary").update((sentences, actions, len(gap)), draw if sentences or actions else None)

    def draw_checks(self, stage: StageState) -> None:
        if not self.query("#checks"):
            return
        checks = self.checks_shown(stage)
        title = self.checks_title()

        def draw(width: int) -> list[Content]:
            return [
                EMPTY,
                stage_sections.section(title, stage_sections.checks_count(checks), width),
                *stage_sections.checks_table(checks, width),
            ]

        self.text_view("checks").update(checks, draw if checks else None)

    def checks_shown(self, stage: StageState) -> tuple[Check, ...]:
        return stage.checks

    def checks_title(self) -> str:
        return "Checks"

    @on(OptionsEditor.Changed)
    def _option_changed(self, event: OptionsEditor.Changed) -> None:
        event.stop()
        wizard_of(self).use_config(event.config)
