"""Events as plain text: lines for logs and schedulers, or one live line on a terminal; and as JSON."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from engine.core import clock
from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Message,
    Progress,
    StageFinished,
    StageStarted,
    TrainStep,
    TrialFinished,
    TrialStarted,
    TrialStep,
)
from engine.core.stage_table import STAGES
from engine.run.journal import Entry, finite
from engine.run.state import RunState
from engine.security.sanitize import visible_line
from engine.storage.jsonl import dumps

GLYPH = {
    "waiting": "·",
    "running": "▶",
    "done": "✓",
    "skipped": "↷",
    "failed": "✗",
    "refused": "⊘",
    "stopped": "■",
    "ok": "✓",
    "warning": "!",
}
COLOUR = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "refused": "red",
    "stopped": "yellow",
    "warning": "yellow",
}
NAME_WIDTH = 20
TEXT_COLUMN = 6
DETAIL_COLUMN = TEXT_COLUMN + NAME_WIDTH + 1
LINE_SECONDS = 5.0
"""Where output is no terminal: a progress line at most so often."""


class AutoPrinter(Protocol):
    def show(self, entry: Entry, state: RunState) -> None: ...

    def refresh(self, state: RunState) -> None: ...

    def close(self, state: RunState) -> None: ...


class LinePrinter:
    """One plain line for what matters, for log files and schedulers."""

    def __init__(self) -> None:
        self._last_progress = 0.0

    def show(self, entry: Entry, state: RunState) -> None:
        line = self._line(entry)
        if line:
            print(line, flush=True)

    def refresh(self, state: RunState) -> None:
        """Lines are printed as events come."""

    def close(self, state: RunState) -> None:
        sys.stdout.flush()

    def _line(self, entry: Entry) -> str:
        if isinstance(entry.event, (Progress, TrainStep, TrialStep)):
            if entry.time - self._last_progress < LINE_SECONDS:
                return ""
            self._last_progress = entry.time
        return event_line(entry)


class LivePrinter:
    """On a terminal: lines for what is finished scroll away above one line that moves."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(Text(""), console=self._console, refresh_per_second=8, transient=True)
        self._live.start()

    def show(self, entry: Entry, state: RunState) -> None:
        if not isinstance(entry.event, (Progress, TrainStep, TrialStep)):
            line = event_line(entry)
            if line:
                indent = " " * (DETAIL_COLUMN if isinstance(entry.event, Check) else TEXT_COLUMN)
                folded = textwrap.fill(
                    line, self._console.width, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False
                )
                self._console.print(Text(folded, style=_style(entry)))

    def refresh(self, state: RunState) -> None:
        self._live.update(_moving_part(state))

    def close(self, state: RunState) -> None:
        self._live.stop()


def event_line(entry: Entry) -> str:
    """One event as a line of text; empty for those that are not worth one. Foreign text is made visible."""
    match entry.event:
        case StageStarted(stage=stage, sentence=sentence):
            return f"▶ {stage_number(stage)} {stage}: {sentence}"
        case StageFinished(stage=stage, outcome=outcome, summary=summary, reused=reused):
            word = "done before" if reused else outcome
            return f"{GLYPH[outcome if not reused else 'done']} {stage_number(stage)} {stage} {word}: {visible_line(summary)}"
        case Check(status=status, name=name, detail=detail):
            return f"    {GLYPH[status]} {visible_line(name):{NAME_WIDTH}} {visible_line(detail)}".rstrip()
        case Progress() as progress:
            return "    " + progress_text(progress)
        case TrainStep() as step:
            return "    " + step_text(step)
        case CheckpointSaved(step=step, path=path):
            return f"    checkpoint at step {step}: {visible_line(path)}"
        case EvalDone(verdict=verdict, reasons=reasons):
            return f"    verdict: {verdict.upper()}. {visible_line(' '.join(reasons))}"
        case Message(level=level, text=text) if level != "debug":
            mark = {"warning": "!", "error": "✗"}.get(level, " ")
            return f"    {mark} {visible_line(text)}"
        case TrialStarted(name=name, number=number, total=total):
            return f"  ▷ trial {number}/{total}  {name}"
        case TrialStep(trial=trial, step=step, total_steps=total, loss=loss, margin=margin):
            return f"    {trial}  step {step}/{total}  loss {loss:.4f}  margin {margin:+.4f}"
        case TrialFinished(name=name, outcome=outcome, summary=summary, reused=reused):
            return f"  {GLYPH[outcome]} trial {name} {'done before' if reused else outcome}: {visible_line(summary)}"
        case _:
            return ""


def progress_text(progress: Progress) -> str:
    parts = [f"{progress.done}/{progress.total} {progress.unit}"]
    if progress.rate:
        parts.append(f"{progress.rate:.1f}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.note:
        parts.append(visible_line(progress.note))
    return "  ".join(parts)


def step_text(step: TrainStep) -> str:
    return f"step {step.step}/{step.total_steps}  {step_figures(step)}"


def step_figures(step: TrainStep) -> str:
    figures = {
        "loss": f"{step.loss:.4f}",
        "margin": f"{step.margin:+.4f}",
        "accuracy": f"{step.accuracy:.2f}",
        "gradient": f"{step.grad_norm:.2f}",
        "tokens/s": f"{step.tokens_per_second:.0f}",
    }
    return "  ".join(f"{name} {figure}" for name, figure in figures.items())


def duration(seconds: float) -> str:
    """`75` is `1:15`, `4000` is `1:06:40`."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _moving_part(state: RunState) -> Group | Text:
    stage = state.current
    if stage is None:
        return Text("")
    head = Text(
        f"▶ {stage_number(stage.name)} {stage.name}  {duration(stage.elapsed(clock.now()) or 0)}  ", style="cyan"
    )
    progress = stage.progress
    if progress is None or not progress.total:
        return head
    head.append(progress_text(progress), style="default")
    if progress.unit == "steps" and state.train_steps:
        head.append(f"\n  {step_figures(state.train_steps[-1])}", style="default")
    return Group(head, ProgressBar(total=progress.total, completed=progress.done, width=60))


def _style(entry: Entry) -> str:
    event = entry.event
    if isinstance(event, StageFinished):
        return COLOUR.get(event.outcome, "")
    if isinstance(event, Check):
        return COLOUR.get(event.status, "")
    if isinstance(event, Message):
        return COLOUR.get({"error": "failed"}.get(event.level, event.level), "dim")
    return "bold" if isinstance(event, (StageStarted, EvalDone)) else ""


def stage_number(stage: str) -> str:
    return f"{STAGES.index(stage) + 1:2}"


class JsonPrinter:
    """The events, one JSON object a line, and nothing else."""

    def show(self, entry: Entry, state: RunState) -> None:
        print(dumps(finite(entry.as_dict())), flush=True)

    def refresh(self, state: RunState) -> None:
        """Events are printed as they come."""

    def close(self, state: RunState) -> None:
        sys.stdout.flush()


def printer_for_output(json: bool) -> AutoPrinter:
    if json:
        return JsonPrinter()
    return LivePrinter() if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else LinePrinter()
