"""Every command and option as plain data, for the completions, the man page and the palette.

Read from the commands' own parsers, which take the options from `engine/core/config.py`, so there is no second table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

from engine.core.options import Option, options
from tui.commands.table import COMMANDS

Kind = Literal["nothing", "text", "path", "choice"]

NO_PATHS = frozenset({"base_model_id", "reward_model_id"})
"""Options that are usually a Hub id, but may be a folder."""
PATH_WORDS = ("FILE", "FOLDER", "RUN", "RUN_DIR", "PAIRS", "DIR", "PATH")
"""Metavars of arguments that are paths."""


@dataclass(frozen=True)
class Flag:
    """One option of a command, or (without a name) its positional arguments."""

    names: tuple[str, ...]
    sentence: str
    kind: Kind
    choices: tuple[str, ...] = ()
    metavar: str = ""
    group: str = ""
    """The option's group; empty for the command's own options."""
    rare: bool = False
    """Omitted from `--help`."""


@dataclass(frozen=True)
class CommandLine:
    name: str
    """Empty for the program without a command."""
    sentence: str
    flags: tuple[Flag, ...]
    argument: Flag | None
    """Positional arguments: a run folder, a file."""


@cache
def command_lines() -> tuple[CommandLine, ...]:
    """The program without a command, then each command in the order of `--help`."""
    return (_line("", "", "run"), *(_line(name, known.sentence, known.module) for name, known in COMMANDS.items()))


def _line(name: str, sentence: str, module: str) -> CommandLine:
    parser: argparse.ArgumentParser = import_module(f"tui.commands.{module}").command_parser()
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = [_flag(action) for action in shown if action.option_strings]
    arguments = [_flag(action) for action in shown if not action.option_strings]
    return CommandLine(name, sentence, tuple(flags), arguments[0] if arguments else None)


def _flag(action: argparse.Action) -> Flag:
    option = _BY_NAME.get(action.dest)
    choices = tuple(map(str, action.choices)) if action.choices else option.choices if option else ()
    metavar = str(action.metavar or action.dest.upper())
    return Flag(
        names=tuple(action.option_strings),
        sentence=(action.help or "").replace("%%", "%"),
        kind=_kind(action, option, metavar, choices),
        choices=choices,
        metavar=metavar,
        group="" if option is None else option.group,
        rare=getattr(action, "rare", False),
    )


def _kind(action: argparse.Action, option: Option | None, metavar: str, choices: tuple[str, ...]) -> Kind:
    if action.nargs == 0:
        return "nothing"
    if choices:
        return "choice"
    is_path = option is not None and (option.annotation.startswith("Path") or "folder" in option.sentence.lower())
    if option is None:
        is_path = metavar in PATH_WORDS
    return "path" if is_path and action.dest not in NO_PATHS else "text"


_BY_NAME = {option.name: option for option in options()}
