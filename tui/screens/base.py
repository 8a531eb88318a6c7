"""What every stage's screen has: its heading, what failed, how far it is, its checks and its options."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget

from engine import names
from engine.options import Option, options
from engine.state import RunState, StageState
from tui.source import RunSource
from tui.widgets import parts
from tui.widgets.layout import EMPTY, paragraph
from tui.widgets.paper import Paper
from tui.widgets.words import foreign

RUN_OPTIONS = ("output_dir", "seed", "device", "dtype")

STAGE_OPTIONS: dict[str, tuple[str, ...]] = {
    "workspace": (*RUN_OPTIONS, "Workspace"),
    "toolchain": ("install",),
    "credentials": ("base_model_id", "base_model_revision", "adapter_path", "dataset"),
    "dependencies": ("install", "device"),
    "adapter": ("Models",),
    "preflight": (
        "device",
        "dtype",
        "max_length",
        "max_new_tokens",
        "generation_batch_size",
        "per_device_train_batch_size",
    ),
    "pairs": ("Pairs", "Server"),
    "quality": ("Quality", "server_url", "server_model"),
    "training": ("Training",),
    "packaging": ("output_dir", "Packaging"),
}
"""Which options a stage's screen shows and edits: names of groups, and of single options."""

NOT_EDITED = ("output_dir",)
"""Another output folder is another run: it is chosen where the program is started."""


def options_of(stage: str) -> tuple[Option, ...]:
    wanted = STAGE_OPTIONS[stage]
    return tuple(option for option in options() if option.name in wanted or option.group in wanted)


class StageView(Vertical):
    """The body of the screen while one stage is looked at. It is told the state, and draws what has changed."""

    STAGE: ClassVar[str]
    PAGES: ClassVar[tuple[str, ...]] = ("Overview",)
    """Views of the stage, one at a time; the key v goes through them."""

    def __init__(self, source: RunSource) -> None:
        super().__init__(id=f"view-{self.STAGE}", classes="stage-view")
        self.source = source
        self._page = 0
        self._page_chosen = False
        """A person chose the page: it stays."""

    # -- what a stage's own screen says -------------------------------------------------------------------------------

    def compose_page(self, page: int) -> ComposeResult:
        """The widgets of one page; the first one is the checks and the options of a plain stage."""
        yield Paper(id="extra")
        yield Paper(id="checks")
        yield Paper(id="options")

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        """Draw what is the stage's own."""

    def page_for(self, state: RunState) -> int:
        """The page to show as long as nobody has chosen one."""
        return 0

    def copy_text(self, state: RunState) -> tuple[str, str]:
        """(what the key c copies, what that is)."""
        return str(self.source.run.folder), "the run folder"

    # -- what all have ------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Paper(id="heading")
        yield Paper(id="failure")
        yield Paper(id="progress")
        yield Paper(id="summary")
        for number in range(len(self.PAGES)):
            with self.page_container(number):
                yield from self.compose_page(number)

    def page_container(self, number: int) -> Widget:
        page = VerticalScroll(id=f"page-{number}", classes="page", can_focus=False)
        page.display = number == self._page
        return page

    @property
    def page(self) -> int:
        return self._page

    def show_page(self, number: int, *, chosen: bool = True) -> None:
        self._page_chosen = self._page_chosen or chosen
        self._page = number % len(self.PAGES)
        for index in range(len(self.PAGES)):
            self.query_one(f"#page-{index}").display = index == self._page

    def next_page(self) -> bool:
        """False where there is one page only."""
        if len(self.PAGES) > 1:
            self.show_page(self._page + 1)
        return len(self.PAGES) > 1

    def scroll_page(self, pages: int) -> None:
        page = self.query_one(f"#page-{self._page}")
        page.scroll_relative(y=pages * max(page.size.height - 1, 1), animate=False)

    def draw(self, state: RunState, now: float) -> None:
        """Show `state`. Cheap where nothing has changed."""
        stage = state.stages[self.STAGE]
        if not self._page_chosen and self.page_for(state) != self._page:
            self.show_page(self.page_for(state), chosen=False)
        self._draw_heading(stage, now)
        self._draw_failure(stage)
        progress = stage.progress
        shown = progress if stage.status in ("running", "stopped", "failed") else None
        self.paper("progress").put(
            (shown, self.gap),
            (lambda width: [*self.gap, *parts.progress_line(shown, width)]) if shown is not None else None,
        )
        self._draw_summary(stage)
        self._draw_checks(stage)
        self._draw_options()
        self.draw_page(state, stage, now)

    @property
    def is_whole(self) -> bool:
        """Whether all its parts are there."""
        parts = ("heading", "failure", "progress", "summary", *(f"page-{n}" for n in range(len(self.PAGES))))
        return self.is_mounted and all(self.query(f"#{part}") for part in parts) and bool(self.query("#options"))

    @property
    def compact(self) -> bool:
        """Whether every line counts."""
        return self.screen.has_class("-short")

    @property
    def gap(self) -> list[Content]:
        """A line left blank, where there are lines to spare."""
        return [] if self.compact else [EMPTY]

    def paper(self, name: str) -> Paper:
        return self.query_one(f"#{name}", Paper)

    def _draw_heading(self, stage: StageState, now: float) -> None:
        page, compact = self._page, self.compact
        key = (stage.status, stage.reused, int(stage.elapsed(now) or 0), page, compact)
        self.paper("heading").put(
            key, lambda width: parts.heading(stage, self.PAGES, page, now, width, compact=compact)
        )

    def _draw_failure(self, stage: StageState) -> None:
        failure = stage.failure
        box = self.paper("failure")
        box.set_class(failure is not None and failure.outcome == "stopped", "-stopped")
        log_path = str(self.source.run / names.RUN_LOG)
        box.put(failure, (lambda width: parts.failure_box(failure, log_path, width)) if failure is not None else None)

    def _draw_summary(self, stage: StageState) -> None:
        text = stage.summary if stage.failure is None else ""
        gap = self.gap

        def draw(width: int) -> list[Content]:
            return [*gap, *paragraph(foreign(text, "$foreground", 600), width)]

        self.paper("summary").put((text, gap), draw if text else None)

    def _draw_checks(self, stage: StageState) -> None:
        checks = stage.checks
        title = self.checks_title()

        def draw(width: int) -> list[Content]:
            return [
                EMPTY,
                parts.section(title, parts.checks_count(checks), width),
                *parts.checks_table(checks, width),
            ]

        self.paper("checks").put(checks, draw if checks else None)

    def checks_title(self) -> str:
        return "Checks"

    def _draw_options(self) -> None:
        config = self.source.config
        chosen = options_of(self.STAGE)
        values = {option.name: getattr(config, option.name) for option in chosen}
        note = "" if self.source.read_only else "e edits them"

        def draw(width: int) -> list[Content]:
            return [EMPTY, parts.section("Options", note, width), *parts.options_table(chosen, values, width)]

        self.paper("options").put(tuple(map(str, values.values())), draw)
