"""`stage3-tui` without a command: the wizard, or the ten stages with --auto."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from engine import __version__
from engine.core.errors import ConfigError, ExitCode
from engine.core.options import options
from tui.commands.arguments import (
    add_options,
    add_run_options,
    add_token_options,
    config_of,
    new_parser,
    parse,
    recorded_config,
    require_terminal,
    token_of,
)
from tui.commands.table import PROGRAM, summary

if TYPE_CHECKING:
    from engine.core.config import Stage3Config

DESCRIPTION = "Stage 3 of Constitutional AI, from a Stage 2 LoRA adapter to a packed Stage 3 adapter."

EPILOGUE = """\
You can also set each option in the environment (STAGE3_NUM_EXAMPLES) or in a TOML file (--config). The command line takes
precedence, then the environment, then the file.

{exit_codes}
"""

EXIT_CODES = (
    ("0", "done"),
    ("1", "a bug"),
    ("2", "usage"),
    ("3", "a precondition is missing"),
    ("4", "token or access"),
    ("5", "network or Hub"),
    ("6", "disk"),
    ("7", "out of memory"),
    ("8", "numerical failure"),
    ("9", "unusable data"),
    ("10", "damaged state"),
    ("11", "another process has this run"),
    ("12", "refused for safety"),
    ("129/130/143", "stopped by a signal, saved"),
)


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    if args.init_config is not None:
        from tui.commands.init_config import write_config

        return write_config(args.init_config)
    if args.json and not args.auto:
        raise ConfigError(
            "--json needs --auto.", "The wizard draws a screen instead.", f"Use `{PROGRAM} --auto --json`."
        )
    config = recorded_config(args) if args.restarted else config_of(args, continues=not args.auto)
    if config.machine_rank > 0:
        return _join_training(config, auto=args.auto, json=args.json)
    if args.auto:
        from tui.commands.auto import run_auto

        return run_auto(
            config,
            until=args.until,
            redo_from=args.redo_from,
            json=args.json,
            verbose=args.verbose,
            token=token_of(args),
        )
    require_terminal()
    if not args.restarted and args.output_dir is None and not _choose_run(config, arguments):
        return int(ExitCode.DONE)
    from tui.wizard.launch import run_wizard_process

    return run_wizard_process(config, token_of(args), start_until=args.until if args.restarted else None)


def _join_training(config: Stage3Config, *, auto: bool, json: bool) -> int:
    if not auto:
        raise ConfigError(
            f"--machine-rank {config.machine_rank} needs --auto.",
            "Only machine 0 can run the wizard.",
            f"Use `{PROGRAM} --auto --machine-rank {config.machine_rank} …`, and `{PROGRAM} attach` to watch the run.",
        )
    from tui.commands.join import run_joining

    return run_joining(config, json=json)


def _choose_run(config: Stage3Config, arguments: list[str]) -> bool:
    """Let the user choose a run if there are several beside `--output-dir`. For another one, this process restarts itself,
    so that it has a single thread and that run's options. False if the user left.
    """
    from tui.process.reexec import program, reexec
    from tui.wizard.run_chooser import choose_run

    folder = choose_run(config)
    if folder is not None and folder != config.output_dir:
        reexec([*program(), *arguments, "--output-dir", str(folder)], None)
    return folder is not None


def command_parser() -> argparse.ArgumentParser:
    codes = textwrap.fill(f"Exit codes: {', '.join(map(' '.join, EXIT_CODES))}.", 120, break_on_hyphens=False)
    epilogue = EPILOGUE.format(exit_codes=codes)
    parser = new_parser(f"{DESCRIPTION}\n\n{summary()}\n", epilogue, usage=f"{PROGRAM} [COMMAND] [OPTIONS]")
    group = parser.add_argument_group("How to run")
    group.add_argument("--auto", action="store_true", help="run without a terminal")
    group.add_argument("--json", action="store_true", help="with --auto: events on stdout, one JSON object per line")
    group.add_argument("--verbose", action="store_true", help="with --auto: print every check and checkpoint")
    add_run_options(group)
    add_token_options(group)
    # Used by `tui.process.reexec` to continue a run in a fresh process.
    group.add_argument("--restarted", action="store_true", help=argparse.SUPPRESS)
    group.add_argument("--token-fd", type=int, help=argparse.SUPPRESS)
    group.add_argument(
        "--init-config",
        nargs="?",
        const="stage3.toml",
        metavar="FILE",
        help="write a TOML file with all options and their defaults [stage3.toml]",
    )
    group.add_argument("--version", "-V", action="version", version=f"{PROGRAM} {__version__}")
    add_options(parser, options())
    return parser
