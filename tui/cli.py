"""The command line. Imports nothing heavy: `--help` and `--version` answer at once."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from engine import __version__
from engine.core.errors import ConfigError, ExitCode, PreconditionError, Stage3Error
from tui.commands.table import COMMANDS, PROGRAM
from tui.process.print_error import print_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"{PROGRAM} {__version__}")
        return 0
    try:
        check_installation()
        module, rest = split_command(arguments)
        return int(import_module(f"tui.commands.{module}").main(rest))
    except Stage3Error as error:
        print_error(error)
        return int(error.exit_code)
    except BrokenPipeError:  # `stage3-tui status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)


def check_installation() -> None:
    """`tui`, `engine` and `themes` are general names: make sure that no other package has put its own in their place.

    Raises PreconditionError.
    """
    import engine
    import themes
    import tui

    for package in (engine, themes, tui):
        if getattr(package, "DISTRIBUTION", None) != PROGRAM:
            raise PreconditionError(
                f"The package {package.__name__} at {package.__file__} is not the one of {PROGRAM}.",
                "Another distribution in this environment has one of the same name.",
                f"Install {PROGRAM} in an environment of its own: `uv tool install {PROGRAM}` or `pipx install {PROGRAM}`.",
            )


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """(module of the command, its arguments); without a command it is the wizard's or `--auto`'s."""
    if not arguments or arguments[0].startswith("-"):
        return "run", arguments
    command = arguments[0]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"There is no command {command!r}.", "", f"The nearest is `{PROGRAM} {nearest}`; see --help.")
    return COMMANDS[command].module, arguments[1:]


if __name__ == "__main__":
    sys.exit(main())
