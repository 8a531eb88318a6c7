"""`stage3-tui plan`: what `--auto` with the same options would do, and why, without doing it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.errors import ExitCode
from engine.core.options import options
from engine.pipeline.plan import Action, PlannedStage, planned_stages
from engine.run.context import Context
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from tui.commands.arguments import add_options, add_run_options, config_of, new_parser, parse
from tui.commands.event_lines import stage_number
from tui.commands.table import PROGRAM
from tui.formatting import approx_duration
from tui.process.output import print_json

STYLE: dict[Action, str] = {
    "reused": "green",
    "again": "yellow",
    "open": "yellow",
    "unknown": "red",
    "every time": "dim",
}
GLYPH: dict[Action, str] = {
    "reused": "✓", "again": "↻", "open": "?", "new": "·", "goes on": "▶", "every time": "·", "unknown": "!",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    config = config_of(args)
    context = Context(config=config, run=Run(config.output_dir))
    planned = planned_stages(context, until=args.until, redo_from=args.redo_from)
    if args.json:
        print_json(plan_data(context.run.folder, planned))
    else:
        print_plan(context.run.folder, planned)
    return int(ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Show what `stage3-tui --auto` with the same options would do: which stages are reused, which are done again and\n"
        "why, how many records have to be made, and how long it takes. Nothing is done, and nothing is written.",
        "",
        usage=f"{PROGRAM} plan [OPTIONS]",
    )
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, options())
    return parser


def plan_data(folder: Path, planned: list[PlannedStage]) -> dict[str, Any]:
    return {"run_dir": str(folder), "stages": [stage.as_dict() for stage in planned], "seconds": known_seconds(planned)}


def known_seconds(planned: list[PlannedStage]) -> float:
    """Total of the stages whose duration is known."""
    return sum(stage.seconds or 0.0 for stage in planned)


def print_plan(folder: Path, planned: list[PlannedStage]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(Text(f"{visible_line(str(folder))}: what --auto with these options would do"))
    table = Table.grid(padding=(0, 2))
    for column in range(5):
        table.add_column(no_wrap=column < 4, overflow="fold")
    for stage in planned:
        took = "" if not stage.seconds else f"about {approx_duration(stage.seconds)}"
        cells = (
            f"{GLYPH[stage.action]} {stage_number(stage.name)}",
            stage.name,
            stage.action_text,
            took,
            visible_line(stage.why, 400),
        )
        table.add_row(*(Text(cell, style=STYLE.get(stage.action, "")) for cell in cells))
    console.print(table)
    unknown = [
        stage.name for stage in planned if stage.seconds is None and stage.action not in ("every time", "reused")
    ]
    total = f"About {approx_duration(known_seconds(planned))}" if known_seconds(planned) else "No stage's time is known"
    beside = f", without {', '.join(unknown)}" if unknown and known_seconds(planned) else ""
    console.print(Text(f"{total}{beside}."))
