"""`stage3-tui attach`: watch a run from another terminal."""

from __future__ import annotations

import argparse

from tui.commands.arguments import config_of, parse, require_terminal, run_dir_of, run_dir_parser


def main(arguments: list[str]) -> int:
    given = parse(command_parser(), arguments)
    require_terminal()
    from tui.wizard.launch import attach

    folder = run_dir_of(given)
    given.output_dir = str(folder)
    return attach(config_of(given, goes_on=True), folder)


def command_parser() -> argparse.ArgumentParser:
    return run_dir_parser(
        "attach", "Watch a run from another terminal: the wizard's screens, read-only except for stop."
    )
