"""The command line. Imports nothing heavy: `--help` and `--version` answer at once."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from engine import __version__
from engine.core.errors import ConfigError, ExitCode, PreconditionError, Stage3Error
from engine.core.options import Option, options
from engine.core.stage_table import STAGES
from tui.process.print_error import print_error

if TYPE_CHECKING:
    from pathlib import Path

    from engine.core.config import Stage3Config

PROGRAM = "stage3-tui"

SUMMARY = """\
Stage 3 of Constitutional AI, from a Stage 2 LoRA adapter to a packed Stage 3 adapter.

  stage3-tui                        the wizard; goes on with the run in --output-dir where it stands
  stage3-tui --auto                 all ten stages without a terminal, for scripts and schedulers
  stage3-tui --demo                 with or without --auto: the embedded model; offline, no GPU, no token
  stage3-tui attach [RUN_DIR]       watch a run from another terminal; may ask it to stop
  stage3-tui stop [RUN_DIR]         ask a run to save and stop
  stage3-tui status [RUN_DIR]       one screen of text (--json for machines)
  stage3-tui validate PAIRS.jsonl   the quality report and the gate, on any pairs file (--json)
  stage3-tui push [RUN_DIR] [REPO]  push the adapter of a finished run to the Hub, in one commit; private
  stage3-tui doctor                 what this machine can run
"""

EPILOGUE = """\
Each option can also stand in the environment (STAGE3_NUM_EXAMPLES) or in a TOML file (--config): the command line comes
first, then the environment, then the file.

Exit codes: 0 done, 1 a bug, 2 usage, 3 a precondition is missing, 4 token or access, 5 network or Hub, 6 disk,
7 out of memory, 8 numbers went bad, 9 the data cannot teach, 10 damaged state, 11 another process has this run,
12 refused for safety, 129/130/143 stopped by a signal, saved.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"{PROGRAM} {__version__}")
        return 0
    try:
        check_installation()
        command, rest = split_command(arguments)
        return COMMANDS[command](rest)
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
    """(command, its arguments); without a command it is the wizard's or `--auto`'s."""
    if arguments and not arguments[0].startswith("-"):
        command = arguments[0]
        if command not in COMMANDS:
            nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"There is no command {command!r}.", "", f"The nearest is `{PROGRAM} {nearest}`; see --help."
            )
        return command, arguments[1:]
    return "run", arguments


# -- run: the wizard and --auto ---------------------------------------------------------------------------------------


def run_command(arguments: list[str]) -> int:
    parser = run_parser()
    given = parse(parser, arguments)
    if given.json and not given.auto:
        raise ConfigError("--json goes with --auto.", "The wizard draws a screen.", f"{PROGRAM} --auto --json")
    config = recorded_config(given) if given.restarted else config_of(given, goes_on=not given.auto)
    if given.auto:
        from tui.commands.auto import run_auto

        return run_auto(config, until=given.until, redo_from=given.redo_from, json=given.json, token=token_of(given))
    require_terminal()
    from tui.wizard.launch import run_wizard_process

    return run_wizard_process(config, token_of(given), start_until=given.until if given.restarted else None)


def run_parser() -> argparse.ArgumentParser:
    parser = new_parser(SUMMARY, EPILOGUE, usage=f"{PROGRAM} [COMMAND] [OPTIONS]")
    way = parser.add_argument_group("How to run")
    way.add_argument("--auto", action="store_true", help="run without a terminal")
    way.add_argument("--demo", action="store_true", help="the embedded model, adapter, prompts and judge")
    way.add_argument("--json", action="store_true", help="with --auto: events on stdout, one JSON object a line")
    way.add_argument("--until", choices=STAGES, default=STAGES[-1], metavar="STAGE", help="the last stage to run")
    way.add_argument(
        "--from", dest="redo_from", choices=STAGES, metavar="STAGE", help="do this stage and what follows again"
    )
    way.add_argument("--config", metavar="FILE", help="a TOML file with options")
    add_token_options(way)
    # How `tui.process.reexec` goes on with a run in a fresh process.
    way.add_argument("--restarted", action="store_true", help=argparse.SUPPRESS)
    way.add_argument("--token-fd", type=int, help=argparse.SUPPRESS)
    way.add_argument("--version", "-V", action="version", version=f"{PROGRAM} {__version__}")
    add_options(parser, options())
    return parser


def add_token_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--token-stdin", action="store_true", help="read the Hugging Face token from standard input")
    parser.add_argument("--token-file", metavar="FILE", help="read it from a file that only you can read (mode 0600)")


def add_options(parser: argparse.ArgumentParser, chosen: Sequence[Option]) -> None:
    """The fields of the configuration as options; values stay text here, the configuration class reads them."""
    groups: dict[str, Any] = {}
    for option in chosen:
        group = groups.setdefault(option.group, parser.add_argument_group(option.group))
        sentence = option.sentence.replace("%", "%%") + (f" [{option.default}]" if option.default else "")
        if option.is_flag:
            group.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, default=None, dest=option.name, help=sentence
            )
        else:
            metavar = "|".join(option.choices) or option.name.rpartition("_")[2].upper()
            group.add_argument(option.flag, default=None, dest=option.name, metavar=metavar, help=sentence)


def config_of(given: argparse.Namespace, *, goes_on: bool = False) -> Stage3Config:
    """The configuration of the arguments. With `goes_on`, what the run in the output folder was started with takes the
    place of the defaults: `stage3-tui` after `stage3-tui --demo` goes on with the demo.
    """
    from pathlib import Path

    from engine.core.config import load_config

    names = {option.name for option in options()}
    values = {name: value for name, value in vars(given).items() if name in names and value is not None}
    preset = None
    if getattr(given, "demo", False):
        from engine.demo.preset import demo_defaults

        preset = demo_defaults()
    toml = getattr(given, "config", None)
    file = Path(toml) if toml else None
    config = load_config(values, toml=file, preset=preset)
    stored = stored_config(config.output_dir) if goes_on and preset is None else {}
    return load_config(values, toml=file, preset=stored) if stored else config


def recorded_config(given: argparse.Namespace) -> Stage3Config:
    """The configuration that the run recorded, and nothing else: it was resolved when the run began. Raises DamagedState."""
    from pathlib import Path

    from engine.core.config import load_config

    folder = Path(given.output_dir)
    return load_config({**stored_config(folder), "output_dir": folder}, environment={})


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`; empty where there is none. Raises DamagedState."""
    from engine.run.folder import Run

    known = {option.name for option in options()} - {"output_dir"}
    return {key: value for key, value in Run(folder).manifest["config"].items() if key in known}


def token_of(given: argparse.Namespace) -> Any:
    """The token from standard input or a file, as a Secret; None where neither was asked for."""
    from engine.hub.token_file import read_token_file
    from engine.security.secrets import Secret

    if getattr(given, "token_fd", None) is not None:
        with os.fdopen(given.token_fd, encoding="utf-8") as pipe:
            return Secret(pipe.readline().strip())
    if given.token_stdin:
        return Secret(sys.stdin.readline().strip())
    return read_token_file(given.token_file) if given.token_file else None


def require_terminal() -> None:
    """The wizard needs a terminal that can draw. Raises ConfigError."""
    advice = f"Use `{PROGRAM} --auto`, or `{PROGRAM} status` to look at a run."
    if not (sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())):
        raise ConfigError(
            "The wizard needs a terminal, and there is none here.", "Input or output is no terminal.", advice
        )
    if os.environ.get("TERM", "dumb") in ("dumb", ""):
        raise ConfigError("The wizard cannot draw on this terminal.", f"TERM is {os.environ.get('TERM')!r}.", advice)


# -- the other commands -----------------------------------------------------------------------------------------------


def attach_command(arguments: list[str]) -> int:
    parser = run_dir_parser(
        "attach", "Watch a run from another terminal: the wizard's screens, read-only but for stop."
    )
    given = parse(parser, arguments)
    require_terminal()
    from tui.wizard.launch import attach

    folder = run_dir_of(given)
    given.output_dir = str(folder)
    return attach(config_of(given, goes_on=True), folder)


def stop_command(arguments: list[str]) -> int:
    parser = run_dir_parser("stop", "Ask a run to finish its step, save and stop.")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for it [60]")
    given = parse(parser, arguments)
    from tui.commands.console import stop_run

    return stop_run(run_dir_of(given), given.wait)


def status_command(arguments: list[str]) -> int:
    parser = run_dir_parser("status", "One screen of text about a run.")
    parser.add_argument("--json", action="store_true", help="for machines")
    given = parse(parser, arguments)
    from tui.commands.console import print_status

    return print_status(run_dir_of(given), as_json=given.json)


def validate_command(arguments: list[str]) -> int:
    parser = new_parser(
        "The quality report and the gate, on any pairs file: ours, the notebook's, or TRL's (prompt, chosen, rejected, as text\n"
        "or as messages), compressed by gzip or not; - is standard input. What people decided (edits.jsonl) and what a judge\n"
        "scored (scores.jsonl) counts where it lies beside the file.",
        "Exit code 0 where the gate is open, 9 where it is shut or a line is no pair.",
        usage=f"{PROGRAM} validate PAIRS.jsonl [--json] [--export TRAIN.jsonl] [OPTIONS]",
    )
    parser.add_argument("pairs", metavar="PAIRS.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object: pairs, figures, gate, verdicts")
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="write what would train, after people's edits, as TRL's prompt, chosen, rejected; only where the gate is open "
        "or --accept-quality opens it",
    )
    parser.add_argument("--force", action="store_true", help="--export may replace a file")
    add_options(parser, [option for option in options() if is_of_the_gate(option)])
    given = parse(parser, arguments)
    from tui.commands.validate import print_validation

    return print_validation(given.pairs, config_of(given), as_json=given.json, export=given.export, force=given.force)


def push_command(arguments: list[str]) -> int:
    parser = new_parser(
        "Push the adapter of a run to the Hub: its files, its card, the evaluation and a manifest, in one commit, out of the\n"
        "archive that the stage packaging made. A new repository is private. What is there already is not sent again.",
        "The token comes from HF_TOKEN, the Hub's own login, --token-stdin or --token-file; it needs the right to write.",
        usage=f"{PROGRAM} push [RUN_DIR] [REPO] [OPTIONS]",
    )
    parser.add_argument("run_dir", nargs="?", metavar="RUN_DIR", help="the run folder; else --output-dir's value")
    parser.add_argument(
        "repo", nargs="?", metavar="REPO", help="owner/name; else --push-to-hub's value, or the run's own"
    )
    add_token_options(parser)
    add_options(parser, [option for option in options() if option.name in ("output_dir", "push_public")])
    given = parse(parser, arguments)
    if given.repo is None and given.run_dir is not None and is_repository(given.run_dir):
        given.repo, given.run_dir = given.run_dir, None
    folder = run_dir_of(given)
    given.output_dir, asked_for_public = str(folder), bool(given.push_public)
    if given.repo is not None:
        given.push_to_hub = given.repo
    config = config_of(given, goes_on=True)
    from tui.commands.push import push_run

    # That another repository may be public says nothing about this one.
    public = config.push_public if given.repo in (None, stored_config(folder).get("push_to_hub")) else asked_for_public
    return push_run(folder, config, public=public, token=token_of(given))


def is_repository(argument: str) -> bool:
    """Whether a single argument is a repository (owner/name), and no folder, nor one that is misspelt."""
    from pathlib import Path

    owner, slash, name = argument.partition("/")
    return (
        bool(owner and slash and name) and "/" not in name and not Path(argument).exists() and not Path(owner).is_dir()
    )


def is_of_the_gate(option: Option) -> bool:
    """Not the judge, nor what is held out: `validate` neither scores nor parts."""
    threshold = option.name.startswith(("min_", "max_", "warn_")) and option.name != "min_eval_pairs"
    return option.group == "Quality" and (threshold or option.name == "accept_quality")


def doctor_command(arguments: list[str]) -> int:
    parser = new_parser(
        "What this machine can run: driver, VRAM, disk, versions, token.", "", usage=f"{PROGRAM} doctor"
    )
    add_options(parser, [option for option in options() if option.name in ("device", "output_dir")])
    given = parse(parser, arguments)
    from tui.commands.console import print_doctor

    return print_doctor(config_of(given))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run_command,
    "attach": attach_command,
    "stop": stop_command,
    "status": status_command,
    "validate": validate_command,
    "push": push_command,
    "doctor": doctor_command,
}


def run_dir_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = new_parser(description, "", usage=f"{PROGRAM} {command} [RUN_DIR] [OPTIONS]")
    parser.add_argument("run_dir", nargs="?", metavar="RUN_DIR", help="the run folder; else --output-dir's value")
    add_options(parser, [option for option in options() if option.name in ("output_dir", "theme", "mouse")])
    return parser


def run_dir_of(given: argparse.Namespace) -> Any:
    """The run folder that a command is about. Raises ConfigError where there is no run."""
    from pathlib import Path

    from engine.core.layout import EVENTS_JSONL, RUN_JSON

    folder = Path(given.run_dir) if given.run_dir else config_of(given).output_dir
    if not (folder / RUN_JSON).exists() and not (folder / EVENTS_JSONL).exists():
        raise ConfigError(f"There is no run in {folder}.", "It has no run.json.", "Give the folder of a run.")
    return folder


def new_parser(description: str, epilogue: str, *, usage: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=PROGRAM,
        usage=usage,
        description=description,
        epilog=epilogue,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", "", f"`{PROGRAM} --help` lists commands and options.")


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse; an option that is not known is an error that names the nearest one."""
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [string for action in parser._actions for string in action.option_strings]
        nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"`{PROGRAM} --help` lists them all."
        raise ConfigError(f"{flag!r} is no option here.", "", hint)
    return given


if __name__ == "__main__":
    sys.exit(main())
