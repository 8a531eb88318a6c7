"""`stage3-tui attach`: watch a run from another terminal."""

from __future__ import annotations

import argparse

from engine.core.errors import ConfigError
from tui.commands.arguments import config_of, parse, require_terminal, run_dir_of, run_dir_parser


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    if not args.in_browser:
        require_terminal()
    from tui.wizard.launch import attach

    folder = run_dir_of(args)
    args.output_dir = str(folder)
    if args.hands_off and args.allow_decisions:
        raise ConfigError(
            "--hands-off cannot be combined with --allow-decisions.",
            "With --hands-off, nothing is written.",
            "Omit one.",
        )
    config = config_of(args, continues=True)
    return attach(config, folder, hands_off=args.hands_off, allows_decisions=args.allow_decisions)


def command_parser() -> argparse.ArgumentParser:
    parser = run_dir_parser(
        "attach", "Watch a run from another terminal: the wizard's screens, read-only except for stop."
    )
    parser.add_argument(
        "--allow-decisions", action="store_true", help="allow accepting, rejecting, swapping and editing pairs"
    )
    parser.add_argument("--hands-off", action="store_true", help="watch only: no stop request, and no file is written")
    parser.add_argument(
        "--in-browser", action="store_true", help=argparse.SUPPRESS
    )  # for `serve`: there is no terminal
    return parser
