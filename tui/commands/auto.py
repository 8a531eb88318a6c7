"""`--auto`: the ten stages without a terminal. The engine works in a thread; this one prints and handles signals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock, Thread
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import RestartNeeded, Stage3Error
from engine.core.layout import EVENTS_JSONL, RUN_LOG
from engine.process.environment import log_to_file, quiet_libraries
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.journal import Entry, read_journal
from engine.run.state import RunState, fold
from engine.security.secrets import Secret
from tui.commands.printers import AutoPrinter, printer_for_output
from tui.process.print_error import print_error
from tui.process.reexec import reexec, resume_command
from tui.process.signals import install_signal_handlers

if TYPE_CHECKING:
    from engine.pipeline.session import Session

REFRESH_SECONDS = 0.25


def run_auto(
    config: Stage3Config,
    *,
    until: str,
    redo_from: str | None,
    json: bool,
    verbose: bool = False,
    token: Secret | None = None,
) -> int:
    """Run the stages and print what happens. Raises Stage3Error if the run cannot start (locked, damaged)."""

    def stages(session: Session) -> int:
        return int(session.run(until=until, redo_from=redo_from))

    def restart_command(run: Run) -> list[str]:
        return resume_command(run.folder, auto=True, until=until, json=json, verbose=verbose)

    return run_and_print(config, stages, restart_command, json=json, verbose=verbose, token=token)


def run_and_print(
    config: Stage3Config,
    drive: Callable[[Session], int],
    restart_command: Callable[[Run], list[str]],
    *,
    json: bool,
    verbose: bool = False,
    token: Secret | None,
) -> int:
    """Acquire the run, let `drive` work through its session, and print what happens; returns the exit code.

    restart_command   the command that continues the run in a fresh process
    """
    quiet_libraries()
    run = Run(config.output_dir)
    run.acquire()
    log_to_file(run / RUN_LOG)
    context = Context(config=config, run=run, token=token)
    printer = EventPrinter(run, printer_for_output(json, verbose))
    install_signal_handlers(lambda reason, code: context.stop.request(reason, code))
    command: list[str] | None = None
    try:
        return _drive_in_thread(context, printer, drive)
    except RestartNeeded:
        command = restart_command(run)
    finally:
        printer.close()
        run.release(for_restart=command is not None)
    return reexec(command, context.token)


class EventPrinter:
    """Folds events as they arrive and passes them to a printer. `tui.process.standard_streams` ensures that a broken
    output never ends the run.
    """

    def __init__(self, run: Run, printer: AutoPrinter) -> None:
        self._lock = Lock()
        self._printer = printer
        self.state = fold(self._remembered(read_journal(run / EVENTS_JSONL)))

    def __call__(self, entry: Entry) -> None:
        with self._lock:
            self.state = self.state.apply_entry(entry)
            self._printer.show(entry, self.state)

    def _remembered(self, entries: Iterable[Entry | None]) -> Iterator[Entry | None]:
        for entry in entries:
            if entry is not None:
                self._printer.remember(entry)
            yield entry

    def refresh(self) -> None:
        with self._lock:
            self._printer.refresh(self.state)

    def close(self) -> None:
        with self._lock:
            self._printer.close(self.state)


def _drive_in_thread(context: Context, printer: EventPrinter, drive: Callable[[Session], int]) -> int:
    from engine.pipeline.session import Session

    codes: list[int] = []
    errors: list[BaseException] = []

    def work() -> None:
        session = Session(context, printer)
        try:
            codes.append(drive(session))
        except BaseException as error:  # carried to the main thread, which raises it
            errors.append(error)
        finally:
            session.close()

    engine = Thread(target=work, name="engine")
    engine.start()
    while engine.is_alive():
        engine.join(REFRESH_SECONDS)
        printer.refresh()
    if errors:
        raise errors[0]
    _print_failure(printer.state)
    return codes[0]


def _print_failure(state: RunState) -> None:
    """Print to stderr what failed, why, and what to do."""
    if state.finished is None or not state.finished.exit_code:
        return
    failure = next((stage.failure for stage in state.stages.values() if stage.failure is not None), None)
    if failure is not None:
        error = Stage3Error(f"{failure.what} (stage {failure.stage})", failure.why, failure.what_to_do)
    else:
        error = Stage3Error(state.finished.summary, "", "See logs/run.log in the run folder.")
    print_error(error)
