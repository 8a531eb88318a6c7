"""Shared by the commands' parsers: options as flags, and the configuration and token from them."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from engine.core.errors import ConfigError
from engine.core.options import Option, options
from engine.core.stage_table import STAGES
from tui.commands.table import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from engine.core.config import Stage3Config

MANY_OPTIONS = 40
"""With more options than this, `--help` shows only the common ones."""


def add_run_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that select the run and its stages."""
    parser.add_argument("--demo", action="store_true", help="use the embedded model, adapter, prompts and judge")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], metavar="STAGE", help="the last stage to run")
    parser.add_argument(
        "--from", dest="redo_from", choices=STAGES, metavar="STAGE", help="do this stage and all later ones again"
    )
    parser.add_argument("--config", metavar="FILE", help="read options from a TOML file")


def add_token_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--token-stdin", action="store_true", help="read the Hugging Face token from standard input")
    parser.add_argument(
        "--token-file", metavar="FILE", help="read the token from a file that only you can read (mode 0600)"
    )


def add_options(parser: argparse.ArgumentParser, chosen: Sequence[Option]) -> None:
    """Add fields of the configuration as options. Values stay text: the configuration class parses them.

    If there are many, `--help` shows the common ones, and `--help-all` all.
    """
    is_long = len(chosen) > MANY_OPTIONS
    if is_long:
        parser.add_argument("--help-all", action=_HelpAll, help=f"help with all {len(chosen)} options")
    groups: dict[str, Any] = {}
    for option in chosen:
        group = groups.setdefault(option.group, parser.add_argument_group(option.group))
        sentence = option.sentence.replace("%", "%%") + _default_shown(option)
        if option.is_flag:
            added = group.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, default=None, dest=option.name, help=sentence
            )
        else:
            metavar = "|".join(option.choices) or option.name.rpartition("_")[2].upper()
            action = "append" if option.is_repeatable else "store"
            added = group.add_argument(
                option.flag, action=action, default=None, dest=option.name, metavar=metavar, help=sentence
            )
        added.rare = is_long and not option.common


def _default_shown(option: Option) -> str:
    names = {"True": "yes", "False": "no"} if option.is_flag else {}
    return f" [{names.get(option.default, option.default)}]" if option.default else ""


def config_of(args: argparse.Namespace, *, continues: bool = False) -> Stage3Config:
    """The configuration from the arguments. With `continues`, the configuration that the run in the output folder was
    started with replaces the defaults: `stage3-tui` after `stage3-tui --demo` continues the demo.
    """
    from pathlib import Path

    from engine.core.config import load_config

    names = {option.name for option in options()}
    values = {name: value for name, value in vars(args).items() if name in names and value is not None}
    preset = None
    if getattr(args, "demo", False):
        from engine.demo.preset import EXAMPLES, demo_defaults

        examples = str(values.get("num_examples", os.environ.get("STAGE3_NUM_EXAMPLES", "")))
        preset = demo_defaults(int(examples) if examples.isdecimal() else EXAMPLES)
    toml = getattr(args, "config", None)
    file = Path(toml) if toml else None
    config = load_config(values, toml=file, preset=preset)
    stored = stored_config(config.output_dir) if continues and preset is None else {}
    return load_config(values, toml=file, preset=stored) if stored else config


def recorded_config(args: argparse.Namespace) -> Stage3Config:
    """The configuration recorded by the run, as resolved at its start. Raises DamagedState."""
    from pathlib import Path

    from engine.core.config import load_config

    folder = Path(args.output_dir)
    return load_config({**stored_config(folder), "output_dir": folder}, environment={})


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`; empty if there is no run. Raises DamagedState."""
    from engine.run.folder import Run

    known = {option.name for option in options()} - {"output_dir"}
    return {key: value for key, value in Run(folder).manifest["config"].items() if key in known}


def token_of(args: argparse.Namespace) -> Any:
    """The token from standard input or a file, as a Secret; None without either option."""
    from engine.hub.token_file import read_token_file, token_line

    if getattr(args, "token_fd", None) is not None:
        with os.fdopen(args.token_fd, encoding="utf-8") as pipe:
            return token_line(pipe, "the pipe from the previous process")
    if args.token_stdin:
        return _token_of_stdin()
    return read_token_file(args.token_file) if args.token_file else None


def _token_of_stdin() -> Any:
    from engine.core.errors import AccessError
    from engine.hub.token_file import token_line

    try:
        return token_line(sys.stdin, "standard input")
    except UnicodeDecodeError:  # its message would quote the input
        raise AccessError(
            "There is no token in standard input.", "The input is not UTF-8.", "Pass only the token, on one line."
        ) from None


def require_terminal() -> None:
    """The wizard needs a terminal that can draw. Raises ConfigError."""
    advice = f"Use `{PROGRAM} --auto`, or `{PROGRAM} status` to see the state of a run."
    if not (sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())):
        raise ConfigError("The wizard needs a terminal.", "Input or output is not a terminal.", advice)
    if os.environ.get("TERM", "dumb") in ("dumb", ""):
        raise ConfigError("The wizard cannot draw on this terminal.", f"TERM is {os.environ.get('TERM')!r}.", advice)


def run_dir_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = new_parser(description, "", usage=f"{PROGRAM} {command} [RUN_DIR] [OPTIONS]")
    parser.add_argument(
        "run_dir", nargs="?", metavar="RUN_DIR", help="the run folder; default: the value of --output-dir"
    )
    add_options(parser, [option for option in options() if option.name in ("output_dir", "theme", "mouse")])
    return parser


def run_dir_of(args: argparse.Namespace) -> Any:
    """The run folder of a command. Raises ConfigError if there is no run in it."""
    from pathlib import Path

    from engine.core.layout import EVENTS_JSONL, RUN_JSON

    folder = Path(args.run_dir) if args.run_dir else config_of(args).output_dir
    if not (folder / RUN_JSON).exists() and not (folder / EVENTS_JSONL).exists():
        raise ConfigError(f"There is no run in {folder}.", "It has no run.json.", "Pass the folder of a run.")
    return folder


def new_parser(description: str, epilogue: str, *, usage: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=PROGRAM,
        usage=usage,
        description=description,
        epilog=epilogue,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show a yes-or-no option once: --mouse / --no-mouse."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return " / ".join(action.option_strings)
        return super()._format_action_invocation(action)


class _HelpAll(argparse.Action):
    """`--help-all`: the help including the options that `--help` omits."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.shows_all = True  # type: ignore[attr-defined]
        parser.print_help()
        parser.exit()


class _Parser(argparse.ArgumentParser):
    shows_all = False

    def format_help(self) -> str:
        hidden = [action for action in self._actions if getattr(action, "rare", False) and not self.shows_all]
        sentences = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, sentence in zip(hidden, sentences, strict=True):
                action.help = sentence

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", "", f"`{PROGRAM} --help` lists commands and options.")


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse; the error for an unknown option names the nearest one."""
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [string for action in parser._actions for string in action.option_strings]
        nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"`{PROGRAM} --help` lists them all."
        raise ConfigError(f"Unknown option {flag!r}.", "", hint)
    return args
