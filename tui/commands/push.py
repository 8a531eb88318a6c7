"""`stage3-tui push`: what `engine.push.finished_run` does, as lines for people."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.core.config import Stage3Config
from engine.core.errors import ConfigError, ExitCode
from engine.core.layout import EVENTS_JSONL, RUN_LOG
from engine.process.environment import log_to_file, quiet_libraries
from engine.run.folder import Run
from engine.run.journal import Journal
from engine.run.stop import StopToken
from engine.security.secrets import Secret
from tui.commands.console import event_line
from tui.process.signals import install_signal_handlers


def push_run(folder: Path, config: Stage3Config, *, public: bool, token: Secret | None) -> int:
    """Push the run in `folder` to `config.push_to_hub`, print what happens, and keep it in the run's journal.

    Raises Stage3Error.
    """
    if config.push_to_hub is None:
        raise ConfigError(
            "There is no repository to push to.",
            "None was given, and the run was started without --push-to-hub.",
            f"`stage3-tui push {folder} OWNER/NAME`",
        )
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
            _print(event_line(journal.append(event)))
    finally:
        journal.close()
    return int(ExitCode.DONE)


def _print(line: str) -> None:
    """A reader that has gone (`| head`) does not end a push."""
    try:
        if line:
            print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
