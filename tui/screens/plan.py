"""What a start would do: which stages are reused, which are done again and why, and how long it would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.worker import Worker, WorkerState

from engine.core.stage_table import STAGE, STAGES
from engine.pipeline.plan import Action, PlannedStage
from tui.formatting import approx_duration, one_line
from tui.screens.dialogs import Dialog
from tui.widgets.layout import EMPTY, Column, paragraph, table
from tui.widgets.text_view import TextView, clickable

MARKS: dict[Action, tuple[str, str]] = {
    "reused": ("✓", "$stage-done"), "again": ("↻", "$stage-stopped"), "open": ("?", "$stage-stopped"),
    "new": ("·", "$foreground"), "goes on": ("▶", "$stage-running"), "every time": ("·", "$muted"),
    "unknown": ("!", "$stage-failed"),
}  # fmt: skip

Planning = Callable[[], Sequence[PlannedStage]]


class PlanWindow(Dialog[bool | None]):
    """Returns True to start, which works even before the plan is ready: reading a dataset takes a moment."""

    CLOSED_BY = ("q", "p")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,a,r,y", "start", "start", show=False)]

    def __init__(self, planning: Planning, *, may_start: bool) -> None:
        super().__init__()
        self._planning, self._may_start = planning, may_start

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="window -large") as window:
            window.border_title = Content("What a start would do")  # type: ignore[assignment]
            yield TextView(id="plan")
            yield TextView(id="plan-keys")

    def on_mount(self) -> None:
        self.query_one("#plan-keys", TextView).update("keys", lambda width: [EMPTY, self._keys().truncate(width)])
        self._show("Checking what can be reused …")
        self.run_worker(self._planning, name="plan", thread=True, exit_on_error=False)
        self.query_one(VerticalScroll).focus()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.SUCCESS:
            planned = tuple(event.worker.result or ())
            self.query_one("#plan", TextView).update(planned, lambda width: plan_lines(planned, width))
        elif event.state is WorkerState.ERROR:
            self._show(f"The plan is not available: {event.worker.error}")

    def _show(self, text: str) -> None:
        self.query_one("#plan", TextView).update(text, lambda width: paragraph(one_line(text, "$muted", 600), width))

    def _keys(self) -> Content:
        """The keys, as clickable words."""
        close = _hint("Esc", "cancels" if self._may_start else "closes", "dismiss_window")
        return _hint("Enter", "starts", "start") + Content("   ") + close if self._may_start else close

    def action_start(self) -> None:
        if self._may_start:
            self.dismiss(True)


def _hint(key: str, word: str, action: str) -> Content:
    return clickable(Content.assemble((key, "bold $key"), (f" {word}", "$muted")), f"screen.{action}")


def plan_lines(planned: Sequence[PlannedStage], width: int) -> list[Content]:
    rows = [_row(stage) for stage in planned]
    lines = table(rows, (Column(2, right=True), Column(1), Column(12), Column(10), Column(8), Column()), width, gap=1)
    seconds = sum(stage.seconds or 0.0 for stage in planned)
    total = f"About {approx_duration(seconds)}" if seconds else "The duration is not known yet"
    unknown = [STAGE[s.name].title for s in planned if s.seconds is None and s.action not in ("reused", "every time")]
    without = f", without {', '.join(unknown)}" if seconds and unknown else ""
    moved = "Files that are made again move to superseded/; nothing is deleted. " if _redoes(planned) else ""
    return [*lines, EMPTY, *paragraph(Content.styled(f"{moved}{total}{without}.", "$muted"), width)]


def _row(stage: PlannedStage) -> tuple[Content, ...]:
    glyph, style = MARKS[stage.action]
    return (
        Content.styled(str(STAGES.index(stage.name) + 1), "$muted"),
        Content.styled(glyph, f"bold {style}"),
        Content.styled(STAGE[stage.name].title, "bold"),
        Content.styled(stage.action_text, style),
        Content.styled(f"~{approx_duration(stage.seconds)}" if stage.seconds else "", "$muted"),
        one_line(stage.why, "$foreground", 300),
    )


def _redoes(planned: Sequence[PlannedStage]) -> bool:
    return any(stage.action == "again" and STAGE[stage.name].outputs for stage in planned)
