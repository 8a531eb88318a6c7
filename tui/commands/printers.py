"""Print the progress of a run on a terminal (finished lines above one live line), to a pipe (lines only), or as JSON."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from engine.core import clock
from engine.core.events import Check, EvalDone, Event, Message, StageFinished, StageStarted
from engine.run.journal import Entry, finite
from engine.run.state import RunState, StageState
from engine.storage.jsonl import dumps
from tui.commands.event_lines import (
    COLOUR,
    DETAIL_COLUMN,
    TEXT_COLUMN,
    duration,
    progress_text,
    stage_number,
    step_figures,
)
from tui.commands.run_lines import ProgressThrottle, RunLines
from tui.server_summary import servers_summary

BAR_WIDTH = 20


class AutoPrinter(Protocol):
    def remember(self, entry: Entry) -> None:
        """Take an event of an earlier process into account, before the first `show`."""

    def show(self, entry: Entry, state: RunState) -> None: ...

    def refresh(self, state: RunState) -> None: ...

    def close(self, state: RunState) -> None: ...


class LinePrinter:
    """Plain lines, for log files and schedulers."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._run_lines, self._throttle = RunLines(verbose), ProgressThrottle()

    def remember(self, entry: Entry) -> None:
        self._run_lines.remember(entry)

    def show(self, entry: Entry, state: RunState) -> None:
        lines = [line.text for line in self._run_lines.lines(entry, state)] or [self._throttle.line(entry, state)]
        for line in filter(None, lines):
            print(line, flush=True)

    def refresh(self, state: RunState) -> None:
        """Nothing to do: lines are printed as events arrive."""

    def close(self, state: RunState) -> None:
        sys.stdout.flush()


class LivePrinter:
    """For a terminal: finished lines scroll above one live line."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._run_lines = RunLines(verbose)
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(Text(""), console=self._console, refresh_per_second=8, transient=True)
        self._live.start()

    def remember(self, entry: Entry) -> None:
        self._run_lines.remember(entry)

    def show(self, entry: Entry, state: RunState) -> None:
        for line in self._run_lines.lines(entry, state):
            indent = " " * (DETAIL_COLUMN if isinstance(line.event, Check) else TEXT_COLUMN)
            folded = textwrap.fill(
                line.text, self._console.width, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False
            )
            self._console.print(Text(folded, style=_style(line.event)))

    def refresh(self, state: RunState) -> None:
        self._live.update(live_line(state, clock.now()))

    def close(self, state: RunState) -> None:
        self._live.stop()


def live_line(state: RunState, now: float) -> Text:
    """The running stage in one line: elapsed time, a bar, and the figures that fit."""
    line = Text("", no_wrap=True, overflow="ellipsis")
    stage = state.current
    if stage is None:
        return line
    line.append(f"▶ {stage_number(stage.name)} {stage.name}  {duration(stage.elapsed(now) or 0)}", "cyan")
    progress = stage.progress
    if progress is not None and progress.total:
        full = min(BAR_WIDTH * progress.done // progress.total, BAR_WIDTH)
        line.append("  " + "━" * full, "cyan").append("─" * (BAR_WIDTH - full), "dim")
        line.append(f"  {_figures(stage, state)}")
    return line


def _figures(stage: StageState, state: RunState) -> str:
    assert stage.progress is not None
    text = progress_text(stage.progress)
    if stage.progress.unit == "steps" and state.train_steps:
        return f"{text}  {step_figures(state.train_steps[-1])}"
    return "  ".join(filter(None, (text, servers_summary(state.servers))))


def _style(event: Event | None) -> str:
    if isinstance(event, StageFinished):
        return COLOUR.get(event.outcome, "")
    if isinstance(event, Check):
        return COLOUR.get(event.status, "")
    if event is None or isinstance(event, Message):
        level = "info" if event is None else event.level
        return COLOUR.get({"error": "failed"}.get(level, level), "dim")
    return "bold" if isinstance(event, (StageStarted, EvalDone)) else ""


class JsonPrinter:
    """The events, one JSON object per line, and nothing else."""

    def remember(self, entry: Entry) -> None:
        """Nothing to do: the event is in the journal."""

    def show(self, entry: Entry, state: RunState) -> None:
        print(dumps(finite(entry.as_dict())), flush=True)

    def refresh(self, state: RunState) -> None:
        """Nothing to do: events are printed as they arrive."""

    def close(self, state: RunState) -> None:
        sys.stdout.flush()


def printer_for_output(json: bool, verbose: bool = False) -> AutoPrinter:
    if json:
        return JsonPrinter()
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return LivePrinter(verbose=verbose) if live else LinePrinter(verbose=verbose)
