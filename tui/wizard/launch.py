"""The wizard's process: locks the run, starts the engine's thread and the screen, and cleans up when the screen ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import ExitCode, Stage3Error
from engine.core.layout import RUN_LOG
from engine.process.environment import log_to_file, quiet_libraries
from engine.run.folder import Run
from engine.security.secrets import Secret
from tui.process.output import print_line
from tui.process.print_error import print_error
from tui.process.reexec import reexec, resume_command
from tui.process.supervisor import Detacher, supervise
from tui.runs.run_source import WizardEnd

if TYPE_CHECKING:
    from tui.runs.runner import Runner


def run_wizard_process(config: Stage3Config, token: Secret | None = None, start_until: str | None = None) -> int:
    """Run the wizard on this terminal; returns the command's exit code. With `start_until` the run starts at once."""

    def farewell(pid: int) -> None:
        print_line(f"The run continues as process {pid}.")
        print_line(
            f"Watch it with `stage3-tui attach {config.output_dir}`; stop it with `stage3-tui stop {config.output_dir}`."
        )

    return supervise(lambda detacher: _wizard(config, token, detacher, start_until), farewell)


def attach(config: Stage3Config, folder: Path, *, hands_off: bool = False, allows_decisions: bool = False) -> int:
    """Show the same screens for another process's run, read-only except for stop.

    hands_off          do not allow stop either
    allows_decisions   allow decisions about pairs
    """
    from tui.runs.watcher import Watcher
    from tui.wizard.app import run_wizard

    redirect_output_to_log(None)
    _, code = run_wizard(Watcher(Run(folder), config, hands_off=hands_off, allows_decisions=allows_decisions))
    return code


def _wizard(config: Stage3Config, token: Secret | None, detacher: Detacher, start_until: str | None) -> int:
    quiet_libraries()
    run = Run(config.output_dir)
    try:
        run.acquire()
    except Stage3Error as error:
        print_error(error)
        return int(error.exit_code)
    log_to_file(run / RUN_LOG)
    redirect_output_to_log(run / RUN_LOG)
    from tui.runs.runner import Runner

    runner = Runner(config, run, token=token, may_query_hub=True)
    try:
        if start_until is not None:
            runner.start(until=start_until)
        end, code = _screen_then_engine(runner, detacher)
    except BaseException:
        run.release()
        raise
    continues = runner.restart_until is not None and end in (WizardEnd.RESTARTS, WizardEnd.LEFT_RUNNING)
    run.release(for_restart=continues)
    if runner.restart_until is None or not continues:
        return code
    without_screen = end is WizardEnd.LEFT_RUNNING
    if not without_screen:
        restore_output()
    return reexec(resume_command(run.folder, auto=without_screen, until=runner.restart_until), runner.token)


def _screen_then_engine(runner: Runner, detacher: Detacher) -> tuple[WizardEnd, int]:
    from tui.process.signals import install_signal_handlers
    from tui.wizard.app import run_wizard

    end, screen_code = run_wizard(runner)
    if end is WizardEnd.LEFT_RUNNING:
        install_signal_handlers(runner.stop)
        detacher.detach()
    if end is WizardEnd.STOPPED and runner.running and screen_code:
        os._exit(screen_code)  # a second signal ends it at once; everything acknowledged is on disk
    runner.join()
    return end, screen_code or int(runner.exit_code or ExitCode.DONE)


def redirect_output_to_log(log: Path | None) -> None:
    """Give the screen its own file to draw on, and send what children and C libraries write to fd 1 and 2 to the log.

    Textual redirects `sys.stdout` and `sys.stderr`, but not the file descriptors: one line from a library would corrupt the
    screen.
    """
    tty = os.fdopen(os.dup(2 if sys.stderr.isatty() else 1), "w", encoding="utf-8")
    sys.__stderr__ = sys.__stdout__ = tty  # type: ignore[misc, assignment]
    target = os.open(
        log if log is not None else os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
    )
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def restore_output() -> None:
    """Restore the terminal as stdout and stderr, for the process that replaces this one."""
    sys.stdout.flush()
    terminal = sys.__stderr__.fileno()  # type: ignore[union-attr]
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
