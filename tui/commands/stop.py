"""`stage3-tui stop`: ask a run to save and stop."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from engine.core.errors import ExitCode
from engine.run import stop_request
from engine.run.folder import Run
from tui.commands.arguments import parse, run_dir_of, run_dir_parser
from tui.process.say import say


def main(arguments: list[str]) -> int:
    given = parse(command_parser(), arguments)
    return stop_run(run_dir_of(given), given.wait)


def command_parser() -> argparse.ArgumentParser:
    parser = run_dir_parser("stop", "Ask a run to finish its step, save and stop.")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for it [60]")
    return parser


def stop_run(folder: Path, wait_seconds: float) -> int:
    """Ask, then wait until the process has let go of the run."""
    run = Run(folder)
    owner = run.owner()
    if owner is None:
        say(f"{run.folder} is not running.")
        return int(ExitCode.DONE)
    stop_request.ask(run.folder)
    say(f"Asked {owner} to save and stop.")
    end = time.monotonic() + wait_seconds
    while run.owner() is not None:
        if time.monotonic() > end:
            say(
                f"It still works after {wait_seconds:g} s, and stops when its step is done. Check with `stage3-tui status`."
            )
            return int(ExitCode.LOCKED)
        time.sleep(0.2)
    say("Stopped. Everything is saved.")
    return int(ExitCode.DONE)
