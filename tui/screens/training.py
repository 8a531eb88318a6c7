"""Stage 9: live figures of the training (loss, margin, speed, memory), and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.worker import Worker, WorkerState

from engine.core import layout
from engine.core.events import CheckpointSaved, EvalDone, Message, TrainStep
from engine.dpo.evaluation.answered_prompts import AnsweredPrompt, answered_prompts_from, read_answered_prompts
from engine.run.state import RunState, StageState
from tui.app_protocol import wizard_of
from tui.formatting import figure, memory, number, safe_text
from tui.screens.answers import AnswersShown, answers_lines
from tui.screens.base import StageView
from tui.screens.compare import series_of
from tui.screens.curves import CURVES, CurvesView, drawn_curve
from tui.screens.curves_file import write_curves
from tui.screens.trials import trial_lines
from tui.screens.verdict import evidence_lines, verdict_lines
from tui.widgets.chart import BLOCKS, BRAILLE, ChartStyle
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY, fit
from tui.widgets.line_chart import LineChart
from tui.widgets.marks import LEVEL_MARKS
from tui.widgets.text_view import TextView

MESSAGES_SHOWN = 3


class TrainingView(StageView):
    STAGE = "training"
    CURVES, VERDICT, TRIALS = OWN_PAGES = ("Curves", "Verdict", "Trials")
    BARE_PAGES = (VERDICT, StageView.OPTIONS)

    _charted: object = None
    """The inputs of the charts when they were last drawn."""
    _view = CurvesView()
    _steps: tuple[TrainStep, ...] = ()
    _evaluation: EvalDone | None = None
    """With `_steps`, the data that the charts and the strip above them were last drawn from, so that both agree."""
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
            yield TextView(id="messages")
            yield TextView(id="memory")
        elif page == self.TRIALS:
            yield TextView(id="trials")
            yield LineChart(id="trial-losses")
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

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        if self.page == self.VERDICT:
            self._draw_verdict(state.evaluation, stage.summary)
            return
        if self.page == self.TRIALS:
            self._draw_trials(state, now)
            return
        steps, saved, gap = state.train_steps, state.checkpoints, self.gap
        # Once a second is enough: the charts are the most expensive part to draw and to send over SSH.
        key = (int(now) if stage.status == "running" else steps[-1:], len(steps) > 0, state.evaluation)
        if key != self._charted:
            self._charted, self._steps, self._evaluation = key, steps, state.evaluation
            self._view = replace(self._view, blocks=wizard_of(self).draws_blocks)
            self._draw_charts(steps, state.evaluation)
        charted = self._steps
        self.text_view("numbers").update(
            (charted[-1:], saved, len(gap)),
            (lambda width: [*gap, *number_lines(charted, saved, width)]) if charted else None,
        )
        self.query_one("#charts").display = bool(steps)
        self._draw_memory(state)
        messages = worth_showing(state, self.STAGE)
        self.text_view("messages").update(
            messages, (lambda width: message_lines(messages, width)) if messages else None
        )

    def _draw_verdict(self, evaluation: EvalDone | None, summary: str) -> None:
        compact, plain = self.compact, wizard_of(self).draws_ascii
        self.text_view("verdict").update(
            (evaluation, compact), lambda width: verdict_lines(evaluation, width, compact=compact, plain=plain)
        )
        self._read_answers(evaluation)
        self._draw_answers()
        self.text_view("evidence").update(
            (evaluation, summary),
            (lambda width: evidence_lines(evaluation, summary, width)) if evaluation is not None else None,
        )

    def _read_answers(self, evaluation: EvalDone | None) -> None:
        """Show the answers in the event at once, then all of the report's when it has been read."""
        if evaluation is self._read_for:
            return
        self._read_for = evaluation
        self._answers = AnswersShown(() if evaluation is None else answered_prompts_from(evaluation.samples))
        if evaluation is not None:
            report = self.source.run / layout.EVALUATION_REPORT
            self.run_worker(
                lambda: read_answered_prompts(report), name="answers", thread=True, exclusive=True, exit_on_error=False
            )

    def _draw_answers(self) -> None:
        shown = self._answers
        self.text_view("answers").update(shown, (lambda width: answers_lines(shown, width)) if shown.answers else None)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.worker.name == "answers" and event.state is WorkerState.SUCCESS:
            found: tuple[AnsweredPrompt, ...] = event.worker.result or ()
            if found:
                self.show_answers(AnswersShown(found))

    @property
    def answers(self) -> AnswersShown:
        return self._answers

    def show_answers(self, shown: AnswersShown) -> None:
        self._answers = shown
        if self.page == self.VERDICT and self.is_built(self.page):
            self._draw_answers()

    def _draw_trials(self, state: RunState, now: float) -> None:
        trials, total = tuple(state.trials.values()), state.trials_total
        key = (trials, total, int(now) if state.running else 0)
        plain = wizard_of(self).draws_ascii
        self.text_view("trials").update(key, lambda width: trial_lines(trials, total, now, width, plain=plain))
        losses = [[number(step.loss) for step in trial.steps] for trial in trials]
        chart = self.query_one("#trial-losses", LineChart)
        chart.display = any(losses)
        head = (
            Content.styled("Loss", "bold $heading"),
            Content.styled("of each trial, in the colour of its number", "$muted"),
        )
        style = ChartStyle(BLOCKS if wizard_of(self).draws_blocks else BRAILLE)
        chart.update([len(each) for each in losses], head, series_of(losses), CURVES["loss"].levels, style=style)

    def _draw_memory(self, state: RunState) -> None:
        reading = state.telemetry[-1] if state.telemetry else None
        peaks, forecast, own_peak = state.peak_gpu_bytes, state.forecast, state.peak_rss_bytes
        self.text_view("memory").update(
            (reading, forecast),
            (lambda width: gpu_lines(reading, peaks, forecast, width, peak_of_process=own_peak))
            if reading is not None
            else None,
        )

    def _draw_charts(self, steps: Sequence[TrainStep], evaluation: EvalDone | None) -> None:
        view = self._view
        for name in CURVES:
            drawn = drawn_curve(name, steps, view, evaluation)
            key = (steps[-1:], len(steps), view, evaluation)
            levels = () if drawn.style.log else drawn.curve.levels
            chart = self.query_one(f"#{name}", LineChart)
            chart.update(key, drawn.titles, drawn.series, levels, drawn.curve.bounds, drawn.style)

    # -- interaction with the charts ----------------------------------------------------------------------------------

    @property
    def curves(self) -> CurvesView:
        return self._view

    def show_curves(self, view: CurvesView) -> None:
        """Redraw the charts with these settings, at once."""
        if view != self._view:
            self._view = view
            if self._steps and self.page == self.CURVES and self.is_built(self.page):
                self._draw_charts(self._steps, self._evaluation)

    def focus_page(self) -> None:
        charts = self.query(LineChart) if self.page == self.CURVES else None
        self.screen.set_focus(charts.first() if charts else None)

    def step_back(self) -> bool:
        if self.page == self.CURVES and self._view.cursor is not None:
            self.show_curves(replace(self._view, cursor=None))
            return True
        return super().step_back()

    def export_curves(self) -> tuple[Path, Path] | None:
        """Save the charts as CSV and SVG in the run folder; returns the paths, or None before the first step. Raises OSError."""
        if not self._steps:
            return None
        return write_curves(self.source.run.folder, self._steps, self._view, self._evaluation)

    @on(LineChart.Pointed)
    def _pointed(self, event: LineChart.Pointed) -> None:
        event.stop()
        self.show_curves(self._view.pointed_at(event.x, self._steps))

    @on(LineChart.Stepped)
    def _stepped(self, event: LineChart.Stepped) -> None:
        event.stop()
        self.show_curves(self._view.moved(event.by, self._steps))


def number_lines(steps: Sequence[TrainStep], saved: Sequence[CheckpointSaved], width: int) -> list[Content]:
    """The figures of the newest step, and the newest checkpoint."""
    last = steps[-1]
    figures = [
        ("step", f"{last.step:,} / {last.total_steps:,}"),
        ("epoch", figure(number(last.epoch), 2)),
        ("loss", figure(number(last.loss), 4)),
        ("margin", figure(number(last.margin))),
        ("accuracy", f"{100 * number(last.accuracy):.0f} %"),
        ("gradient", figure(number(last.grad_norm), 2)),
        ("rate", f"{number(last.learning_rate):.1e}" if last.learning_rate else "0"),
        ("tok/s", figure(number(last.tokens_per_second), 0)),
        ("saved", f"step {saved[-1].step:,}" if saved else "none"),
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


def worth_showing(state: RunState, stage: str) -> tuple[Message, ...]:
    """The newest warnings and errors; before the first step, which may take a minute, also progress messages."""
    levels = ("warning", "error") if state.train_steps else ("info", "warning", "error")
    of_stage = (message for _, message in state.messages if message.stage == stage and message.level in levels)
    return tuple(of_stage)[-MESSAGES_SHOWN:]


def message_lines(messages: Sequence[Message], width: int) -> list[Content]:
    """The messages, one per line."""
    return [
        Content.assemble(
            (f"{LEVEL_MARKS[one.level].glyph} ", f"bold {LEVEL_MARKS[one.level].style}"), safe_text(one.text, "", 300)
        ).truncate(width, ellipsis=True)
        for one in messages
    ]
