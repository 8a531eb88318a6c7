"""Stage 9: live figures of the training (loss, margin, speed, memory), and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.worker import Worker, WorkerState

from engine.core import layout
from engine.core.events import CheckpointSaved, EvalDone, Message, TrainStep
from engine.dpo.evaluation.answered import Answered, answered_of, read_answered
from engine.run.state import RunState, StageState
from tui.app_protocol import wizard_of
from tui.formatting import figure, memory, number, safe_text
from tui.screens.answers import AnswersShown, answers_lines
from tui.screens.base import StageView
from tui.screens.trials import trial_lines
from tui.screens.verdict import evidence_lines, verdict_lines
from tui.widgets.chart import Level, Series, moving_average
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY, fit
from tui.widgets.line_chart import LineChart
from tui.widgets.marks import LEVEL_MARKS
from tui.widgets.text_view import TextView

ZOOMS = (1, 2, 8)
"""The part of the steps that the charts show: all, the newest half, the newest eighth."""
ZOOM_WORDS = {1: "", 2: "   the newer half", 8: "   the newest eighth"}
MIN_STEPS = 16
"""Minimum points in a zoomed chart."""
WARNINGS_SHOWN = 3


class TrainingView(StageView):
    STAGE = "training"
    CURVES, VERDICT, TRIALS = OWN_PAGES = ("Curves", "Verdict", "Trials")
    BARE_PAGES = (VERDICT, StageView.OPTIONS)

    _charted: object = None
    """The inputs of the charts when they were last drawn."""
    _zoom = ZOOMS[0]
    empty_pages: tuple[str, ...] = (TRIALS,)
    _answers = AnswersShown()
    _read_for: EvalDone | None = None
    """The evaluation whose answers are shown."""

    def compose_page(self, page: str) -> ComposeResult:
        if page == self.CURVES:
            yield TextView(id="numbers")
            with Container(id="charts"):
                for name in CURVES:
                    yield LineChart(id=name)
            yield TextView(id="warnings")
            yield TextView(id="memory")
        elif page == self.TRIALS:
            yield TextView(id="trials")
        else:
            yield TextView(id="verdict")
            yield TextView(id="answers")
            yield TextView(id="evidence")
            yield TextView(id="checks")

    async def draw(self, state: RunState, now: float) -> bool:
        self.empty_pages = () if state.trials else (self.TRIALS,)
        return await super().draw(state, now)

    def page_for(self, state: RunState) -> str:
        if state.trials and state.stages[self.STAGE].status == "waiting":
            return self.TRIALS
        done = state.evaluation is not None and state.stages[self.STAGE].status == "done"
        return self.VERDICT if done else self.CURVES

    def zoom(self) -> None:
        self._zoom = ZOOMS[(ZOOMS.index(self._zoom) + 1) % len(ZOOMS)]

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        if self.page == self.VERDICT:
            self._draw_verdict(state.evaluation, stage.summary)
            return
        if self.page == self.TRIALS:
            self._draw_trials(state, now)
            return
        steps, saved, gap = state.train_steps, state.checkpoints, self.gap
        self.paper("numbers").put(
            (steps[-1:], saved, len(gap)),
            (lambda width: [*gap, *number_lines(steps, saved, width)]) if steps else None,
        )
        self.query_one("#charts").display = bool(steps)
        self._draw_memory(state)
        warnings = tuple(
            message
            for _, message in state.messages
            if message.stage == self.STAGE and message.level in ("warning", "error")
        )[-WARNINGS_SHOWN:]
        self.paper("warnings").put(warnings, (lambda width: warning_lines(warnings, width)) if warnings else None)
        # Once a second is enough: a chart is the most expensive part to draw, and to send over SSH.
        key = (int(now) if stage.status == "running" else steps[-1:], len(steps) > 0, self._zoom)
        if key != self._charted:
            self._charted = key
            self._draw_charts(steps)

    def _draw_verdict(self, evaluation: EvalDone | None, summary: str) -> None:
        compact, plain = self.compact, wizard_of(self).draws_ascii
        self.paper("verdict").put(
            (evaluation, compact), lambda width: verdict_lines(evaluation, width, compact=compact, plain=plain)
        )
        self._read_answers(evaluation)
        self._draw_answers()
        self.paper("evidence").put(
            (evaluation, summary),
            (lambda width: evidence_lines(evaluation, summary, width)) if evaluation is not None else None,
        )

    def _read_answers(self, evaluation: EvalDone | None) -> None:
        """Those of the event at once, and all of the report as soon as it is read."""
        if evaluation is self._read_for:
            return
        self._read_for = evaluation
        self._answers = AnswersShown(() if evaluation is None else answered_of(evaluation.samples))
        if evaluation is not None:
            report = self.source.run / layout.EVALUATION_REPORT
            self.run_worker(
                lambda: read_answered(report), name="answers", thread=True, exclusive=True, exit_on_error=False
            )

    def _draw_answers(self) -> None:
        shown = self._answers
        self.paper("answers").put(shown, (lambda width: answers_lines(shown, width)) if shown.answers else None)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.worker.name == "answers" and event.state is WorkerState.SUCCESS:
            found: tuple[Answered, ...] = event.worker.result or ()
            if found:
                self.show_answers(AnswersShown(found))

    @property
    def answers(self) -> AnswersShown:
        return self._answers

    def show_answers(self, shown: AnswersShown) -> None:
        self._answers = shown
        if self.page == self.VERDICT and self.is_made(self.page):
            self._draw_answers()

    def _draw_trials(self, state: RunState, now: float) -> None:
        trials, total = tuple(state.trials.values()), state.trials_total
        key = (trials, total, int(now) if state.running else 0)
        plain = wizard_of(self).draws_ascii
        self.paper("trials").put(key, lambda width: trial_lines(trials, total, now, width, plain=plain))

    def _draw_memory(self, state: RunState) -> None:
        reading = state.telemetry[-1] if state.telemetry else None
        peaks, forecast, own_peak = state.peak_gpu_bytes, state.forecast, state.peak_rss_bytes
        self.paper("memory").put(
            (reading, forecast),
            (lambda width: gpu_lines(reading, peaks, forecast, width, peak_of_process=own_peak))
            if reading is not None
            else None,
        )

    def _draw_charts(self, steps: Sequence[TrainStep]) -> None:
        shown = steps[-max(len(steps) // self._zoom, MIN_STEPS) :]
        over = max(len(shown) // 20, 1)
        note = ZOOM_WORDS[self._zoom] if len(shown) < len(steps) else ""
        for name, drawn in CURVES.items():
            points = [(float(step.step), number(getattr(step, drawn.field))) for step in shown]
            newest = figure(points[-1][1], 4 if name == "loss" else 3) if points else ""
            raw = Series(points, f"$chart-{drawn.colour}-raw")
            smooth = Series(moving_average(points, over), f"$chart-{drawn.colour}", thick=True)
            self.query_one(f"#{name}", LineChart).put(
                (shown[-1:], len(shown)),
                Content.assemble(
                    (f"{drawn.title}  ", "bold $heading"), (newest, "bold"), (f"   {drawn.sentence}{note}", "$muted")
                ),
                [raw, smooth],
                drawn.levels,
                drawn.bounds,
            )


class Curve(NamedTuple):
    title: str
    sentence: str
    field: str
    """Of a step."""
    colour: str
    levels: tuple[Level, ...] = ()
    bounds: tuple[float, float] | None = None


CURVES: dict[str, Curve] = {
    "loss": Curve("Loss", "ln 2 = untrained", "loss", "loss", (Level(math.log(2), "ln 2"),)),
    "margin": Curve("Reward margin", "chosen minus rejected", "margin", "margin", (Level(0.0, "0"),)),
    "accuracy": Curve(
        "Accuracy", "pairs with a positive margin", "accuracy", "margin", (Level(0.5, "0.5"),), (0.0, 1.0)
    ),
    "gradient": Curve("Gradient norm", "before clipping", "grad_norm", "loss"),
}
"""The last two are shown if there is room."""


def number_lines(steps: Sequence[TrainStep], saved: Sequence[CheckpointSaved], width: int) -> list[Content]:
    """The newest step in figures, and the checkpoints."""
    last = steps[-1]
    figures = [
        ("step", f"{last.step:,} / {last.total_steps:,}"),
        ("epoch", figure(number(last.epoch), 2)),
        ("loss", figure(number(last.loss), 4)),
        ("margin", figure(number(last.margin))),
        ("accuracy", f"{100 * number(last.accuracy):.0f} %"),
        ("gradient", figure(number(last.grad_norm), 2)),
        ("rate", f"{number(last.learning_rate):.1e}"),
        ("tok/s", figure(number(last.tokens_per_second), 0)),
        ("saved", f"step {saved[-1].step:,}" if saved else "nothing"),
        ("size", memory(saved[-1].bytes) if saved else "-"),
    ]
    across = 10 if width >= 150 else 5
    cells = [
        Content.assemble((f"{name} ", "$muted"), (value, "bold $check-failed" if value == "nan" else "bold"))
        for name, value in figures
    ]
    room = width // across
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    return [EMPTY.join([fit(cell, room - 1).pad_right(1) for cell in row]) for row in rows]


def warning_lines(warnings: Sequence[Message], width: int) -> list[Content]:
    """Warnings of the training with their evidence, a line each."""
    return [
        Content.assemble(
            (f"{LEVEL_MARKS[one.level].glyph} ", f"bold {LEVEL_MARKS[one.level].style}"), safe_text(one.text, "", 300)
        ).truncate(width, ellipsis=True)
        for one in warnings
    ]
