"""A process working on a run: the lock, the journal, telemetry, stop requests, and the pipeline between them.

Used by both drivers: the loop of `--auto` and the wizard's worker thread. It calls `listener` with each journal entry, on
the thread that wrote it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from functools import partial
from threading import Event as Flag
from threading import Thread

from engine import __version__
from engine.core import layout
from engine.core.config import NOT_RECORDED
from engine.core.errors import ExitCode, Stage3Error
from engine.core.events import Event, Message, RunFinished, RunStarted, StageFinished
from engine.core.stage_table import STAGES
from engine.machine.error_mapping import as_stage3_error
from engine.machine.telemetry import Sampler
from engine.pipeline.loop import run_pipeline
from engine.process.environment import prepare_process
from engine.run import stop_request
from engine.run.context import Context
from engine.run.journal import Entry, Journal
from engine.run.leftovers import remove_leftovers
from engine.run.reserve import create_reserve, remove_reserve
from engine.run.watchdog import StallWatchdog
from engine.security.redaction import redacted

Listener = Callable[[Entry], None]
Pipeline = Generator[Event, None, ExitCode]

WATCH_SECONDS = 0.25
FINAL_EVENTS = (StageFinished, RunFinished)

log = logging.getLogger(__name__)


class Session:
    """Owns the journal of a run while this process works on it. The caller has acquired the run."""

    _sampler: Sampler
    """The sampler of the newest `drive`."""

    def __init__(self, context: Context, listener: Listener) -> None:
        self.context = context
        self._listener = listener
        context.emit = self._emit
        self._journal = Journal(context.run / layout.EVENTS_JSONL)
        self._stall = StallWatchdog(self._emit, context.run / layout.RUN_LOG)

    def run(self, *, until: str = STAGES[-1], redo_from: str | None = None) -> ExitCode:
        """Run the ten stages, or some of them, to the end. Raises only for a journal that cannot be written (DiskError)."""
        stages = STAGES[: STAGES.index(until) + 1]
        return self.drive(run_pipeline(self.context, until=until, redo_from=redo_from), stages)

    def drive(self, pipeline: Pipeline, stages: Sequence[str]) -> ExitCode:
        """Run a pipeline over these stages to its end. Raises as `run` does."""
        prepare_process(self.context.config)
        remove_leftovers(self.context.run)
        create_reserve(self.context.run / layout.RESERVE)
        record_configuration(self.context)
        self._emit(
            RunStarted(
                run_dir=str(self.context.run.folder),
                version=__version__,
                pid=os.getpid(),
                host=socket.gethostname(),
                stages=tuple(stages),
            )
        )
        if self._journal.torn_bytes:
            self._emit(Message("warning", f"{self._journal.torn_bytes} bytes of an unfinished event were moved aside."))
        done = Flag()
        watcher = Thread(target=self._watch, args=(done,), name="watch", daemon=True)
        self._sampler = Sampler(self._emit)
        watcher.start()
        self._sampler.start()
        try:
            return self._run_to_end(pipeline)
        finally:
            done.set()
            self._sampler.stop()
            watcher.join()
            remove_reserve(self.context.run / layout.RESERVE)

    def close(self) -> None:
        self._journal.close()

    def _run_to_end(self, pipeline: Pipeline) -> ExitCode:
        """A missing run folder or a journal that cannot be written is a failure of the running stage, and is recorded like any
        other, as far as possible.
        """
        failure: OSError | Stage3Error | None = None
        step = partial(next, pipeline)
        while True:
            try:
                event = step()
            except StopIteration as end:
                return ExitCode(end.value)
            step = partial(next, pipeline)
            try:
                self._record(event)
            except (OSError, Stage3Error) as error:
                if failure is not None or isinstance(event, FINAL_EVENTS):
                    self._listener(self._journal.unwritten_entry(redacted(event)))  # the listener still gets it
                else:
                    failure, step = error, partial(pipeline.throw, error)

    def _record(self, event: Event) -> None:
        """Raises DamagedState if the run folder or the journal is gone, UnsafeError if a link is in the place of one of its
        folders, DiskError if the journal cannot be written.
        """
        self._stall.note_event(event)
        if isinstance(event, RunFinished):
            self._sampler.stop()  # nothing may follow the last event
        if not isinstance(event, FINAL_EVENTS):
            self.context.run.require_in_place()
            self.context.run.refuse_new_links()
            self._journal.require_in_place()
        self._emit(event)

    def _emit(self, event: Event) -> None:
        self._listener(self._journal.append(redacted(event)))

    def _watch(self, done: Flag) -> None:
        """Poll for stop requests and for stalls."""
        while not done.wait(WATCH_SECONDS):
            try:
                self._check_stop_request()
                self._stall.check()
            except (OSError, Stage3Error):  # the pipeline reports a full disk
                log.exception("checking the run folder failed")

    def _check_stop_request(self) -> None:
        folder = self.context.run.folder
        if stop_request.exists(folder):
            self.context.stop.request("requested by `stage3-tui stop`")
            stop_request.remove(folder)  # it must not stop the next start


def record_configuration(context: Context) -> None:
    """Record the configuration and versions in `run.json`."""
    context.run.manifest["config"] = context.config.model_dump(mode="json", exclude=set(NOT_RECORDED))
    context.run.manifest["version"] = __version__
    context.run.save()


def failure_text(error: BaseException) -> str:
    """A sentence for an error that escaped a session."""
    known = as_stage3_error(error)
    return str(known) if known is not None else f"{type(error).__name__}: {error}"
