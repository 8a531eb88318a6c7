"""`stage3-tui push`: push a finished run (`engine.push.finished_run`) and print the progress."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.errors import ConfigError, ExitCode
from engine.core.layout import EVENTS_JSONL, RUN_LOG
from engine.core.options import options
from tui.commands.arguments import (
    add_options,
    add_token_options,
    config_of,
    new_parser,
    parse,
    run_dir_of,
    stored_config,
    token_of,
)
from tui.commands.table import PROGRAM

if TYPE_CHECKING:  # pydantic and rich would slow --help
    from engine.core.config import Stage3Config
    from engine.run.folder import Run
    from engine.security.secrets import Secret


def main(arguments: list[str]) -> int:
    args = parse(command_parser(), arguments)
    if args.repo is None and args.run_dir is not None and is_repository(args.run_dir):
        args.repo, args.run_dir = args.run_dir, None
    folder = run_dir_of(args)
    args.output_dir, public_requested = str(folder), bool(args.push_public)
    if args.repo is not None:
        args.push_to_hub = args.repo
    config = config_of(args, continues=True)
    # The run's --push-public is for its own repository, not for another one.
    public = config.push_public if args.repo in (None, stored_config(folder).get("push_to_hub")) else public_requested
    return push_run(folder, config, public=public, token=token_of(args))


def command_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "Push the adapter of a finished run to the Hub: its files, card, evaluation and manifest, in one commit, from the\n"
        "archive that stage packaging made. A new repository is private. Files that the Hub already has are not sent again.",
        "The token comes from HF_TOKEN, the Hub's own login, --token-stdin or --token-file, and needs write access.",
        usage=f"{PROGRAM} push [RUN_DIR] [REPO] [OPTIONS]",
    )
    parser.add_argument(
        "run_dir", nargs="?", metavar="RUN_DIR", help="the run folder; default: the value of --output-dir"
    )
    parser.add_argument("repo", nargs="?", metavar="REPO", help="owner/name; default: --push-to-hub, or the run's own")
    add_token_options(parser)
    add_options(parser, [option for option in options() if option.name in ("output_dir", "push_public")])
    return parser


def is_repository(argument: str) -> bool:
    """Whether a single argument is a repository (owner/name), not a (perhaps misspelt) folder."""
    owner, slash, name = argument.partition("/")
    return (
        bool(owner and slash and name) and "/" not in name and not Path(argument).exists() and not Path(owner).is_dir()
    )


def push_run(folder: Path, config: Stage3Config, *, public: bool, token: Secret | None) -> int:
    """Push the run in `folder` to `config.push_to_hub`, print what happens, and record it in the run's journal.

    Raises Stage3Error.
    """
    if config.push_to_hub is None:
        raise ConfigError(
            "No repository to push to.",
            "You passed none, and the run has no --push-to-hub.",
            f"Run `stage3-tui push {folder} OWNER/NAME`.",
        )
    from engine.process.environment import log_to_file, quiet_libraries
    from engine.run.folder import Run

    quiet_libraries()
    run = Run(folder)
    run.acquire()
    try:
        log_to_file(run / RUN_LOG)
        return _push(run, config, public, token)
    finally:
        run.release()


def _push(run: Run, config: Stage3Config, public: bool, token: Secret | None) -> int:
    from engine.push.finished_run import push_finished_run
    from engine.run.journal import Journal
    from engine.run.stop import StopToken
    from tui.commands.event_lines import event_line
    from tui.process.signals import install_signal_handlers

    stop, journal = StopToken(), Journal(run / EVENTS_JSONL)
    install_signal_handlers(stop.request)
    events = push_finished_run(
        run,
        str(config.push_to_hub),
        token=token,
        public=public,
        accept_lookalikes=config.accept_lookalikes is not None,
        stop=stop,
    )
    try:
        for event in events:
            if line := event_line(journal.append(event)):
                print(line, flush=True)
    finally:
        journal.close()
    return int(ExitCode.DONE)
