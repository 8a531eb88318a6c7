"""`stage3-tui status`: the state of a run on one screen, or as JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core import layout
from engine.run.folder import Run
from engine.run.journal import read_journal
from engine.run.owner import Owner
from engine.run.state import RunState, StageState, fold
from engine.security.sanitize import visible_line
from tui.commands.arguments import parse, run_dir_of, run_dir_parser
from tui.commands.event_lines import COLOUR, GLYPH, duration, progress_text, stage_number, step_text
from tui.process.output import print_json


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    return print_status(run_dir_of(args), as_json=args.json)


def command_parser() -> argparse.ArgumentParser:
    parser = run_dir_parser("status", "Print the state of a run on one screen.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def print_status(folder: Path, *, as_json: bool) -> int:
    run = Run(folder)
    state = fold(read_journal(run / layout.EVENTS_JSONL))
    owner = run.owner()
    if as_json:
        print_json(status_data(run, state, owner))
    else:
        print_status_text(run, state, owner)
    return 0


def status_data(run: Run, state: RunState, owner: Owner | None) -> dict[str, Any]:
    step = state.train_steps[-1] if state.train_steps else None
    return {
        "run_dir": str(run.folder),
        "running": owner is not None,
        "owner": owner.as_dict() if owner else None,
        "stages": {
            stage.name: {
                "status": _effective_status(stage, owner),
                "summary": stage.summary,
                "seconds": stage.elapsed(state.last_time),
                "progress": asdict(stage.progress) if stage.progress else None,
            }
            for stage in state.stages.values()
        },
        "pairs_made": state.pairs_made,
        "pair_failures": dict(state.pair_failures),
        "train_step": asdict(step) if step else None,
        "verdict": state.evaluation.verdict if state.evaluation else None,
        "error": run.manifest.get("error"),
        "events_passed_over": state.skipped_lines,
        "archive": str(run.archive) if run.archive.exists() else None,
    }


def print_status_text(run: Run, state: RunState, owner: Owner | None) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(Text(f"{visible_line(str(run.folder))}: {owner or 'not running'}"))
    table = Table.grid(padding=(0, 2))
    for stage in state.stages.values():
        status = _effective_status(stage, owner)
        text = visible_line(stage.summary)
        if status == "running" and stage.progress:
            text = progress_text(stage.progress)
        if status == "running" and stage.name == "training" and state.train_steps:
            text = step_text(state.train_steps[-1])
        seconds = stage.elapsed(state.last_time)
        took = duration(seconds) if seconds is not None else ""
        cells = (f"{GLYPH[status]} {stage_number(stage.name)}", stage.name, status, took, text)
        table.add_row(*(Text(cell, style=COLOUR.get(status, "")) for cell in cells))
    console.print(table)
    error = run.manifest.get("error")
    if error and not owner:
        for word, key in (("failed", "what"), ("why", "why"), ("next", "what_to_do")):
            console.print(Text(f"{word + ':':8}{visible_line(str(error.get(key, '')))}"))
    if state.evaluation:
        console.print(Text(f"verdict: {state.evaluation.verdict}. {visible_line(' '.join(state.evaluation.reasons))}"))
    if state.skipped_lines:
        lines = "1 line" if state.skipped_lines == 1 else f"{state.skipped_lines:,} lines"
        console.print(Text(f"skipped {lines} of {layout.EVENTS_JSONL}: damaged, or from another version"))
    if run.archive.exists():
        console.print(Text(f"archive: {visible_line(str(run.archive))}"))


def _effective_status(stage: StageState, owner: Owner | None) -> str:
    """The stage's status; stopped if its process died while it was running, which the journal cannot record."""
    return "stopped" if stage.status == "running" and owner is None else stage.status
