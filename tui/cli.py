"""The command line. Imports nothing heavy, so that `--help` and `--version` respond at once."""

from __future__ import annotations

import atexit
import difflib
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from engine import __version__
from engine.core.errors import ConfigError, DiskError, ExitCode, PreconditionError, Stage3Error
from engine.core.system_errors import system_error
from tui.commands.table import COMMANDS, PROGRAM
from tui.process.print_error import print_error
from tui.process.standard_streams import lost_output, prepare_standard_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    prepare_standard_streams()
    atexit.register(gc.freeze)  # exit at once: skip the final garbage collection
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code, is_report = _run(arguments)
        lost = lost_output() if is_report and code == ExitCode.DONE else None
    except Stage3Error as error:
        return _report(error)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except Exception as error:
        known = system_error(error)
        if known is None:
            raise
        return _report(known)
    if lost is None:
        return code
    what = "Standard output is incomplete."
    return _report(system_error(lost, what) or DiskError(what, str(lost), "Redirect standard output somewhere else."))


def _run(arguments: list[str]) -> tuple[int, bool]:
    """Run a command. Returns its exit code, and whether printing is all that it does. Raises Stage3Error."""
    if arguments in (["--version"], ["-V"]):
        print(f"{PROGRAM} {__version__}")
        return int(ExitCode.DONE), True
    check_installation()
    name, rest = split_command(arguments)
    if not {"--help", "-h"} & set(rest):
        require_working_directory()
    module = COMMANDS[name].module if name else "run"
    try:
        code = int(import_module(f"tui.commands.{module}").main(rest))
    except SystemExit as end:  # argparse, after printing its help
        return int(end.code or 0), True
    return code, name in COMMANDS and COMMANDS[name].is_report


def _report(error: Stage3Error) -> int:
    """Print the error; returns its exit code."""
    print_error(error)
    return int(error.exit_code)


def require_working_directory() -> None:
    """Raises PreconditionError if it was deleted: no relative path can be resolved then."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise PreconditionError(
            "The working directory no longer exists.",
            "The folder that this shell is in was deleted or replaced.",
            "Change to another folder with `cd`, and run the same command there.",
        ) from None


def check_installation() -> None:
    """Make sure that `tui`, `engine` and `themes` are this program's: another distribution may have packages of these names.

    Raises PreconditionError.
    """
    import engine
    import themes
    import tui

    for package in (engine, themes, tui):
        if getattr(package, "DISTRIBUTION", None) != PROGRAM:
            raise PreconditionError(
                f"The package {package.__name__} at {package.__file__} does not belong to {PROGRAM}.",
                "Another distribution in this environment has a package of the same name.",
                f"Install {PROGRAM} in its own environment: `uv tool install {PROGRAM}` or `pipx install {PROGRAM}`.",
            )


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """(the command's name, its arguments); the name is empty for the wizard and `--auto`. Raises ConfigError."""
    if not arguments or arguments[0].startswith("-"):
        return "", arguments
    command = arguments[0]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"There is no command {command!r}.", "", f"Did you mean `{PROGRAM} {nearest}`? See --help for all commands."
        )
    return command, arguments[1:]


if __name__ == "__main__":
    sys.exit(main())
