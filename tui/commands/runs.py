"""`stage3-tui runs`: list the runs below a folder, newest first, each sweep with its trials."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.core.errors import ConfigError, ExitCode
from engine.core.options import options
from engine.run.listing import RunSummary, State, find_runs
from engine.security.sanitize import visible_line
from tui.commands.arguments import add_options, config_of, new_parser, parse
from tui.commands.table import PROGRAM
from tui.formatting import memory
from tui.process.output import print_json

STYLE: dict[State, str] = {
    "running": "cyan", "done": "green", "failed": "red", "refused": "red", "damaged": "red", "stopped": "yellow",
    "interrupted": "yellow", "unfinished": "",
}  # fmt: skip
VERDICT_STYLE = {"better": "green", "worse": "red"}
WIDE = 120
"""Minimum columns for one line per run."""


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    folder = Path(args.folder) if args.folder else config_of(args).output_dir.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.", "", f"Pass a folder: `{PROGRAM} runs FOLDER`.")
    found = find_runs(folder.resolve())
    if args.json:
        print_json({"folder": str(folder.resolve()), "runs": [as_data(run) for run in found]})
    else:
        print_runs(folder.resolve(), found)
    return int(ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "List the runs in a folder and below it, newest first: time, model, pairs, verdict, state, size. The trials of a sweep\n"
        "follow it. Nothing is written.",
        "",
        usage=f"{PROGRAM} runs [FOLDER] [--json]",
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="where to look; default: beside --output-dir")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, [option for option in options() if option.name == "output_dir"])
    return parser


def as_data(run: RunSummary) -> dict[str, Any]:
    return {
        "run_dir": str(run.folder),
        "state": run.state,
        "stage": run.stage or None,
        "when": None if run.when is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.when)),
        "model": run.model,
        "pairs": run.pairs,
        "verdict": run.verdict or None,
        "bytes": run.bytes,
        "trials": [as_data(trial) for trial in run.trials],
    }


def print_runs(folder: Path, found: list[RunSummary]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not found:
        console.print(Text(f"No run in {visible_line(str(folder))} or below it."))
        return
    console.print(Text(f"Runs in {visible_line(str(folder))}:", "dim"), soft_wrap=True)
    if console.width >= WIDE:
        _print_on_one_line_each(console, folder, found)
    else:
        _print_on_two_lines_each(console, folder, found)


def _print_on_one_line_each(console: Console, folder: Path, found: list[RunSummary]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold")
    for title in ("when", "model", "pairs", "verdict", "state", "size"):
        table.add_column(title, justify="right" if title in ("pairs", "size") else "left", no_wrap=True)
    for run, depth in with_trials(found):
        table.add_row(_name(run, folder, depth), *_cells(run))
    console.print(table)


def _print_on_two_lines_each(console: Console, folder: Path, found: list[RunSummary]) -> None:
    """The name gets its own line: a path does not fit in a table of 80 columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for title in ("when", "model", "pairs", "verdict", "state", "size"):
        table.add_column(justify="right" if title in ("pairs", "size") else "left", no_wrap=title != "model")
    names = {}
    for number, (run, depth) in enumerate(with_trials(found)):
        names[number] = _name(run, folder, depth)
        when, model, pairs, *rest = _cells(run)
        table.add_row(Text("  ") + when, model, Text.assemble(pairs, " pairs" if pairs.plain else ""), *rest)
    lines = console.render_lines(table, console.options.update(width=console.width - 1), pad=False)
    for number, line in enumerate(lines[: len(names)]):
        console.print(names[number])
        console.print(Text.assemble(*((segment.text, segment.style or "") for segment in line)), no_wrap=True)


def with_trials(found: Iterable[RunSummary], depth: int = 0) -> Iterable[tuple[RunSummary, int]]:
    for run in found:
        yield run, depth
        yield from with_trials(run.trials, depth + 1)


def _name(run: RunSummary, folder: Path, depth: int) -> Text:
    shown = run.folder.name if depth or run.folder == folder else str(run.folder.relative_to(folder))
    return Text(f"{'  ' * (depth - 1)}{'└ ' if depth else ''}{visible_line(shown)}", "" if depth else "bold")


def _cells(run: RunSummary) -> list[Text]:
    return [
        Text("" if run.when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.when)), "dim"),
        Text(visible_line(run.model, 24)),
        Text("" if run.pairs is None else f"{run.pairs:,}"),
        Text(visible_line(run.verdict, 14), VERDICT_STYLE.get(run.verdict, "")),
        Text(run.state_label, STYLE[run.state]),
        Text(memory(run.bytes)),
    ]
