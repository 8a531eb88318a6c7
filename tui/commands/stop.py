"""`stage3-tui stop`: ask a run to save and stop."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from engine.core.errors import ExitCode
from engine.core.layout import EVENTS_JSONL
from engine.run import stop_request
from engine.run.folder import Run
from engine.run.journal import read_entries
from engine.run.owner import Owner
from engine.run.state import fold
from tui.commands.arguments import parse, run_dir_of, run_dir_parser
from tui.process.output import print_line

START_SECONDS = 5.0
"""How long a process may hold the run before its first event."""


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    return stop_run(run_dir_of(args), args.wait)


def command_parser() -> argparse.ArgumentParser:
    parser = run_dir_parser("stop", "Ask a run to finish its step, save and stop.")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait [60]")
    return parser


def stop_run(folder: Path, wait_seconds: float) -> int:
    """Request a stop, then wait until the process releases the run."""
    run = Run(folder)
    owner = run.owner()
    if owner is None:
        print_line(f"{run.folder} is not running.")
        return int(ExitCode.DONE)
    stop_request.create(run.folder)
    print_line(f"Asked process {owner.pid} on {owner.host} to save and stop.")
    end = time.monotonic() + wait_seconds
    while run.owner() is not None:
        if time.monotonic() > end:
            print_line(_not_stopped(run, owner, wait_seconds))
            return int(ExitCode.LOCKED)
        time.sleep(0.2)
    print_line("Stopped. Everything is saved.")
    return int(ExitCode.DONE)


def _not_stopped(run: Run, owner: Owner, waited: float) -> str:
    """Why the run has not stopped. A request that nothing reads is withdrawn, or it would stop the next start."""
    if waited < START_SECONDS or _is_working(run, owner):
        return f"Still running after {waited:g} s; it stops when its step is done. Check with `stage3-tui status`."
    stop_request.remove(run.folder)
    return f"Process {owner.pid} on {owner.host} has the run open, but no stage is running. Quit it there with q."


def _is_working(run: Run, owner: Owner) -> bool:
    """Whether the owner is working, by the journal: a wizard may hold a run without running a stage."""
    state = fold(read_entries(run / EVENTS_JSONL))
    return state.running and state.run is not None and state.run.pid == owner.pid
