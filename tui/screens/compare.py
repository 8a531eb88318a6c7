"""Compare several runs: their curves in one chart, the options that differ, and their figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from engine.core.options import options as options_known
from engine.pipeline.compare import SHARES, Figure, RunComparison, compare
from tui.app_protocol import wizard_of
from tui.formatting import figure, one_line
from tui.screens.verdict import WORD_STYLES
from tui.widgets.chart import BLOCKS, BRAILLE, ChartStyle, Level, Series, moving_average
from tui.widgets.layout import EMPTY, fit, paragraph
from tui.widgets.line_chart import LineChart
from tui.widgets.stage_sections import section
from tui.widgets.text_view import TextView

COLOURS = ("$chart-loss", "$chart-margin", "$accent", "$gauge-forecast", "$stage-failed", "$foreground")
"""The colours of the runs, in order; with more runs they repeat."""
NAME_CELLS, CELLS, MAX_CELLS = 26, 14, 26
KEYS = Content.assemble(
    ("Esc", "bold $key"), (" back to the runs   ", "$muted"), ("PgDn", "bold $key"), (" scrolls", "$muted")
)
SMOOTHED = 20
"""Each point of a curve is the mean over a twentieth of its steps."""


class CompareScreen(Screen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,c", "back", "back", show=False, priority=True)]
    DEFAULT_CSS = """
    CompareScreen { background: $background; }
    CompareScreen #compare-head, CompareScreen #compare-keys { height: auto; padding: 0 1; }
    CompareScreen #compare-head { padding: 1 1 0 1; }
    CompareScreen #compare-body {
        height: 1fr;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        scrollbar-color: $rule;
    }
    CompareScreen #compare-curves { height: 14; margin-top: 1; }
    CompareScreen #compare-curves LineChart { margin-right: 2; }
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self._folders = tuple(folders)

    def compose(self) -> ComposeResult:
        yield TextView(id="compare-head")
        with VerticalScroll(id="compare-body"):
            with Horizontal(id="compare-curves"):
                yield LineChart(id="compare-loss")
                yield LineChart(id="compare-margin")
            yield TextView(id="compare-tables")
        yield TextView(id="compare-keys")

    def on_mount(self) -> None:
        self.query_one("#compare-curves").display = False
        self.query_one("#compare-head", TextView).update("reads", lambda width: [Content.styled("Reading …", "$muted")])
        self.query_one("#compare-keys", TextView).update("keys", lambda width: [KEYS.truncate(width)])
        self.query_one("#compare-body").focus()
        folders = self._folders
        self.run_worker(lambda: compare(folders), name="compare", thread=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.SUCCESS:
            self._show(event.worker.result)  # type: ignore[arg-type]
        elif event.state is WorkerState.ERROR:
            message = one_line(f"Cannot compare these runs: {event.worker.error}", "$check-failed", 400)
            self.query_one("#compare-head", TextView).update("failed", lambda width: paragraph(message, width))

    def _show(self, found: RunComparison) -> None:
        self.query_one("#compare-head", TextView).update("found", lambda width: legend_lines(found, width))
        self.query_one("#compare-tables", TextView).update("found", lambda width: table_lines(found, width))
        curves = (
            ("loss", "Loss", found.losses, Level(math.log(2), "ln 2")),
            ("margin", "Reward margin", found.margins, Level(0.0, "0")),
        )
        self.query_one("#compare-curves").display = any(map(len, found.losses))
        style = ChartStyle(BLOCKS if wizard_of(self).draws_blocks else BRAILLE)
        for name, title, values, level in curves:
            head = Content.styled(title, "bold $heading"), Content.styled("step by step, smoothed", "$muted")
            self.query_one(f"#compare-{name}", LineChart).update(name, head, series_of(values), (level,), style=style)

    def action_back(self) -> None:
        self.dismiss(None)


def letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def series_of(curves: Sequence[Sequence[float]]) -> list[Series]:
    """One smoothed line per run, in its colour; the first run is drawn on top."""
    lines = []
    for number, values in enumerate(curves):
        points = [(float(step), value) for step, value in enumerate(values, start=1)]
        smooth = moving_average(points, max(len(points) // SMOOTHED, 1))
        lines.append(Series(smooth, colour(number), thick=number == 0))
    return lines[::-1]


def legend_lines(found: RunComparison, width: int) -> list[Content]:
    """The colour, letter and verdict of each run, then warnings about the comparison."""
    names = names_of(found.folders)
    lines = [Content.assemble(("Compared   ", "bold $heading"), (f"{len(names)} runs", "$muted"))]
    for number, (name, verdict) in enumerate(zip(names, found.verdicts, strict=True)):
        word = one_line(verdict or "no verdict", f"bold {WORD_STYLES.get(verdict, '$muted')}", 20)
        mark = Content.styled(f"━━ {letter(number)}  ", f"bold {colour(number)}")
        lines.append(
            (mark + fit(one_line(name, "$foreground", 200), max(width - 24, 20)) + Content(" ") + word).truncate(width)
        )
    for note in found.notes:
        lines += paragraph(Content.assemble(("! ", "bold $check-warning"), (note, "$check-warning")), width)
    return lines


def names_of(folders: Sequence[Path]) -> list[str]:
    """The parts of the paths that differ."""
    parts = [folder.parts for folder in folders]
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1:
        shared += 1
    return [str(Path(*each[shared:])) for each in parts]


def table_lines(found: RunComparison, width: int) -> list[Content]:
    """The options that differ, then the figures, with one column per run."""
    labels = {option.name: option.label for option in options_known()}
    options = [(labels.get(name, name), [_value(value) for value in values]) for name, values in found.options.items()]
    figures = [(name, [_figure(name, one) for one in values]) for name, values in found.figures.items()]
    lines = [EMPTY, section("Options that differ", "" if options else "none", width), *_table(options, width)]
    return [*lines, EMPTY, section("Figures", "with 95 % intervals", width), *_table(figures, width)]


def _table(rows: Sequence[tuple[str, Sequence[str]]], width: int) -> list[Content]:
    if not rows:
        return []
    runs = len(rows[0][1])
    widest = max(len(text) for _, texts in rows for text in texts)
    cells = min(max(widest, CELLS), MAX_CELLS, max((width - NAME_CELLS) // runs - 2, 8))
    head = Content("  ").join(
        [Content(" " * NAME_CELLS), *(fit(Content.styled(letter(n), f"bold {colour(n)}"), cells) for n in range(runs))]
    )
    lines = [head.truncate(width, ellipsis=True)]
    for name, texts in rows:
        row = [
            fit(one_line(name, "$muted", 60), NAME_CELLS),
            *(fit(one_line(text, "$foreground", 80), cells) for text in texts),
        ]
        lines.append(Content("  ").join(row).truncate(width, ellipsis=True))
    return lines


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _figure(name: str, one: Figure) -> str:
    if one.value is None:
        return "-"
    value = _number(name, one.value)
    return (
        value
        if one.low is None or one.high is None
        else f"{value} ({_number(name, one.low)} to {_number(name, one.high)})"
    )


def _number(name: str, value: float) -> str:
    return f"{value:.0%}" if name in SHARES else figure(value)
