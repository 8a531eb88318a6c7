"""Plain text from the same fold that the wizard draws: `--auto`'s printers, `status`, `stop`, `doctor`."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, Stage3Error
from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Message,
    Progress,
    StageFinished,
    StageStarted,
    TrainStep,
)
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.run.journal import Entry, read_entries
from engine.run.state import RunState, StageState, fold
from engine.security.sanitize import visible_line

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
        if isinstance(entry.event, (Progress, TrainStep)):
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
        if not isinstance(entry.event, (Progress, TrainStep)):
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
            return f"▶ {_number(stage)} {stage}: {sentence}"
        case StageFinished(stage=stage, outcome=outcome, summary=summary, reused=reused):
            word = "done before" if reused else outcome
            return (
                f"{GLYPH[outcome if not reused else 'done']} {_number(stage)} {stage} {word}: {visible_line(summary)}"
            )
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
    head = Text(f"▶ {_number(stage.name)} {stage.name}  {duration(stage.elapsed(time.time()) or 0)}  ", style="cyan")
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


def _number(stage: str) -> str:
    return f"{STAGES.index(stage) + 1:2}"


# -- status and stop --------------------------------------------------------------------------------------------------


def print_status(folder: Path, *, as_json: bool) -> int:
    run = Run(folder)
    state = fold(read_entries(run / layout.EVENTS_JSONL))
    owner = run.owner()
    if as_json:
        print(json.dumps(status_data(run, state, owner), ensure_ascii=False, indent=2))
    else:
        print_status_text(run, state, owner)
    return 0


def status_data(run: Run, state: RunState, owner: dict[str, Any] | None) -> dict[str, Any]:
    step = state.train_steps[-1] if state.train_steps else None
    return {
        "run_dir": str(run.folder),
        "running": owner is not None,
        "owner": owner,
        "stages": {
            stage.name: {
                "status": _seen_status(stage, owner),
                "summary": stage.summary,
                "seconds": stage.elapsed(time.time() if owner else state.last_time),
                "progress": asdict(stage.progress) if stage.progress else None,
            }
            for stage in state.stages.values()
        },
        "pairs_made": state.pairs_made,
        "pair_failures": dict(state.pair_failures),
        "train_step": asdict(step) if step else None,
        "verdict": state.evaluation.verdict if state.evaluation else None,
        "error": run.manifest.get("error"),
        "archive": str(run.archive) if run.archive.exists() else None,
    }


def print_status_text(run: Run, state: RunState, owner: dict[str, Any] | None) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    at_work = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "nobody works on it"
    console.print(Text(f"{run.folder}: {at_work}"))
    table = Table.grid(padding=(0, 2))
    for stage in state.stages.values():
        status = _seen_status(stage, owner)
        text = visible_line(stage.summary)
        if status == "running" and stage.progress:
            text = progress_text(stage.progress)
        if status == "running" and stage.name == "training" and state.train_steps:
            text = step_text(state.train_steps[-1])
        seconds = stage.elapsed(time.time() if owner else state.last_time)
        took = duration(seconds) if seconds is not None else ""
        cells = (f"{GLYPH[status]} {_number(stage.name)}", stage.name, status, took, text)
        table.add_row(*(Text(cell, style=COLOUR.get(status, "")) for cell in cells))
    console.print(table)
    error = run.manifest.get("error")
    if error and not owner:
        for word, key in (("failed", "what"), ("why", "why"), ("next", "what_to_do")):
            console.print(Text(f"{word + ':':8}{visible_line(str(error.get(key, '')))}"))
    if state.evaluation:
        console.print(Text(f"verdict: {state.evaluation.verdict}. {visible_line(' '.join(state.evaluation.reasons))}"))
    if run.archive.exists():
        console.print(Text(f"archive: {run.archive}"))


def _seen_status(stage: StageState, owner: dict[str, Any] | None) -> str:
    """A stage that was running when its process died is stopped, whatever the journal's last word."""
    return "stopped" if stage.status == "running" and owner is None else stage.status


def stop_run(folder: Path, wait_seconds: float) -> int:
    """Ask, then wait until the process has let go of the run."""
    run = Run(folder)
    owner = run.owner()
    if owner is None:
        print(f"Nobody works on {run.folder}.")
        return int(ExitCode.DONE)
    (run / layout.STOP_REQUEST).touch()
    print(f"Asked process {owner['pid']} on {owner['host']} to save and stop.", flush=True)
    end = time.monotonic() + wait_seconds
    while run.owner() is not None:
        if time.monotonic() > end:
            print("It has not stopped yet: it finishes its step first. Look again with `stage3-tui status`.")
            return int(ExitCode.DONE)
        time.sleep(0.2)
    print("It has stopped; everything is saved.")
    return int(ExitCode.DONE)


# -- doctor -----------------------------------------------------------------------------------------------------------


def print_doctor(config: Stage3Config) -> int:
    """What stages toolchain and dependencies find, and GPU, disk and token, without a run."""
    from engine.pipeline.doctor import examine

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    worst = ExitCode.DONE
    for finding in examine(config):
        if isinstance(finding, Stage3Error):
            worst = finding.exit_code
            console.print(Text(f"✗ {visible_line(str(finding))}", style="red"))
        else:
            line = f"{GLYPH[finding.status]} {visible_line(finding.name):{NAME_WIDTH}} {visible_line(finding.detail)}"
            console.print(Text(line, style=COLOUR.get(finding.status, "")))
    return int(worst)
