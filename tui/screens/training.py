"""Stage 9: DPO as it goes (loss, margin, speed, memory), and in the end whether Stage 3 is better than Stage 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from engine.events import CheckpointSaved, EvalDone, TrainStep
from engine.state import RunState, StageState
from tui.screens.base import StageView
from tui.widgets.chart import Level, Series, moving_average
from tui.widgets.gpus import gpu_lines
from tui.widgets.layout import EMPTY, Column, fit, paragraph, table
from tui.widgets.line_chart import LineChart
from tui.widgets.pair_text import draft_and_revision
from tui.widgets.paper import Paper
from tui.widgets.parts import section
from tui.widgets.words import figure, foreign, line, memory, number

CURVES, VERDICT, OPTIONS = range(3)
LN2 = Level(math.log(2), "ln 2")


class TrainingView(StageView):
    STAGE = "training"
    PAGES = ("Curves", "Verdict", "Options")

    _charted: object = None
    """What the charts last depended on."""

    def compose_page(self, page: int) -> ComposeResult:
        if page == CURVES:
            yield Paper(id="numbers")
            with Horizontal(id="charts"):
                yield LineChart(id="loss")
                yield LineChart(id="margin")
            yield Paper(id="memory")
        elif page == VERDICT:
            yield Paper(id="verdict")
            yield Paper(id="checks")
        else:
            yield Paper(id="options")

    def page_for(self, state: RunState) -> int:
        return VERDICT if state.evaluation is not None and state.stages[self.STAGE].status == "done" else CURVES

    def draw_page(self, state: RunState, stage: StageState, now: float) -> None:
        steps, saved = state.train_steps, state.checkpoints
        gap = self.gap
        self.paper("numbers").put((steps[-1:], saved, gap), lambda width: [*gap, *number_lines(steps, saved, width)])
        reading = state.telemetry[-1] if state.telemetry else None
        peaks = state.peak_gpu_bytes
        self.paper("memory").put(
            reading, (lambda width: gpu_lines(reading, peaks, width)) if reading is not None else None
        )
        # A second is soon enough: a chart is the dearest thing on the screen, and over SSH the longest to send.
        key = (int(now), len(steps) > 0) if stage.status == "running" else steps[-1:]
        if key != self._charted:
            self._charted = key
            self._draw_charts(steps)
        evaluation = state.evaluation
        self.paper("verdict").put(
            (evaluation, stage.status == "running"), lambda width: verdict_lines(evaluation, stage.status, width)
        )

    def _draw_charts(self, steps: Sequence[TrainStep]) -> None:
        losses = [(float(step.step), number(step.loss)) for step in steps]
        margins = [(float(step.step), number(step.margin)) for step in steps]
        over = max(len(steps) // 20, 1)
        self.query_one("#loss", LineChart).put(
            tuple(steps[-1:]),
            Content.assemble(("Loss", "bold $heading"), ("   ln 2 is where an untrained policy stands", "$muted")),
            [Series(losses, "$chart-loss-raw"), Series(moving_average(losses, over), "$chart-loss")],
            [LN2],
        )
        self.query_one("#margin", LineChart).put(
            tuple(steps[-1:]),
            Content.assemble(("Reward margin", "bold $heading"), ("   chosen less rejected", "$muted")),
            [Series(margins, "$chart-margin-raw"), Series(moving_average(margins, over), "$chart-margin")],
            [Level(0.0, "0")],
        )


def number_lines(steps: Sequence[TrainStep], saved: Sequence[CheckpointSaved], width: int) -> list[Content]:
    """The newest step in figures, and the checkpoints."""
    if not steps:
        return [Content.styled("No step yet.", "$muted")]
    last = steps[-1]
    figures = [
        ("step", f"{last.step:,} / {last.total_steps:,}"),
        ("epoch", figure(number(last.epoch), 2)),
        ("loss", figure(number(last.loss), 4)),
        ("margin", figure(number(last.margin))),
        ("accuracy", f"{100 * number(last.accuracy):.0f} %"),
        ("grad norm", figure(number(last.grad_norm))),
        ("lr", f"{number(last.learning_rate):.2e}"),
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


def verdict_lines(evaluation: EvalDone | None, status: str, width: int) -> list[Content]:
    """Whether Stage 3 is better than Stage 2, both answers to a few held-out prompts, and all the figures."""
    if evaluation is None:
        coming = "The verdict comes after training, from held-out prompts."
        return [EMPTY, Content.styled(coming, "$muted")]
    word = line(evaluation.verdict, limit=60)
    style = {"better": "$stage-done", "worse": "$stage-failed"}.get(
        word.plain.split(" ")[0].casefold(), "$check-warning"
    )
    lines = [EMPTY, Content.assemble(("Stage 3 against Stage 2: ", "$foreground"), word.stylize(f"bold {style}"))]
    for reason in evaluation.reasons:
        lines += paragraph(Content.assemble(("· ", "$muted"), foreign(reason, "$foreground", 600)), width)
    for position, sample in enumerate(evaluation.samples, start=1):
        prompt = foreign(sample.get("prompt", ""), "$foreground", 1_000)
        lines += [EMPTY, section(f"Sample {position}", "", width), *paragraph(prompt, width)]
        answers = str(sample.get("stage2", "")), str(sample.get("stage3", ""))
        lines += draft_and_revision(*answers, width, ("Stage 2", "Stage 3"))
    if evaluation.figures:
        rows = [
            (
                line(name.replace("_", " "), "$muted", 50),
                Content.styled("none" if value is None else figure(value, 4), "bold"),
            )
            for name, value in evaluation.figures.items()
        ]
        lines += [EMPTY, section("Figures", "held-out prompts", width)]
        lines += table(rows, (Column(50), Column()), width)
    return lines
