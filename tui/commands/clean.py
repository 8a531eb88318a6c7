"""`stage3-tui clean`: list what can be removed from a run, with sizes; with --yes, remove it."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from engine.core.errors import ExitCode
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from tui.commands.arguments import parse, run_dir_of, run_dir_parser
from tui.commands.table import PROGRAM
from tui.formatting import memory
from tui.process.output import print_json

if TYPE_CHECKING:
    from engine.pipeline.clean import Cleanup, CleanupItem, Kind

TITLES: dict[Kind, str] = {"superseded": "Set aside", "checkpoints": "Checkpoints", "caches": "Caches"}
INDENT = " " * 14


def main(arguments: list[str]) -> int:
    from engine.pipeline.clean import KINDS, find_removable

    args = parse(command_parser(), arguments)
    run, kinds = Run(run_dir_of(args)), args.only or KINDS
    found = clean(run, kinds) if args.yes else find_removable(run).only(kinds)
    if args.json:
        print_json(as_data(run, found, removed=args.yes))
    else:
        print_cleanup(run, found, removed=args.yes)
    return int(ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    from engine.pipeline.clean import KINDS

    parser = run_dir_parser(
        "clean",
        "List what can be removed from a run, with sizes: files that were set aside, old checkpoints, caches; never what the\n"
        "archive or the next start needs. Nothing is removed without --yes, or while a process has the run.",
    )
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument("--only", choices=KINDS, action="append", help="only this kind; can be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def clean(run: Run, kinds: tuple[Kind, ...]) -> Cleanup:
    """Lock the run and its trials, and remove what can be removed; returns it. Raises RunLocked, OSError."""
    from engine.pipeline.clean import find_removable, remove, trials_of

    with ExitStack() as held:
        for one in (run, *trials_of(run)):
            one.acquire()
            held.callback(one.release)
        found = find_removable(run).only(kinds)
        remove(run, found.removable)
    return found


def as_data(run: Run, found: Cleanup, *, removed: bool) -> dict[str, Any]:
    return {
        "run_dir": str(run.folder),
        "removed": removed,
        "bytes": found.bytes,
        "goes": [item.as_dict() for item in found.removable],
        "stays": [item.as_dict() for item in found.kept],
    }


def print_cleanup(run: Run, found: Cleanup, *, removed: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    for kind, title in TITLES.items():
        items = [item for item in found.removable if item.kind == kind]
        if items:
            console.print(Text(f"{title}: {memory(sum(item.bytes for item in items))}", "bold"))
            _print_items(console, items)
    if found.kept:
        console.print(Text("Kept:", "bold"))
        _print_items(console, found.kept)
    console.print(Text(_conclusion(run, found, removed)), soft_wrap=True)


def _print_items(console: Console, items: list[CleanupItem] | tuple[CleanupItem, ...]) -> None:
    for item in items:
        console.print(Text(f"  {memory(item.bytes):>10}  {visible_line(item.path)}"), soft_wrap=True)
        why = textwrap.fill(
            visible_line(item.why), max(console.width, 40), initial_indent=INDENT, subsequent_indent=INDENT
        )
        console.print(Text(why, "dim"))


def _conclusion(run: Run, found: Cleanup, removed: bool) -> str:
    if not found.removable:
        return "Nothing can be removed from this run."
    if removed:
        return f"Freed {memory(found.bytes)}."
    owner = run.owner()
    if owner is not None:
        return f"{memory(found.bytes)} can be removed once process {owner.pid} has released the run."
    return f"{memory(found.bytes)} can be removed: `{PROGRAM} clean {shlex.quote(str(run.folder))} --yes`"
