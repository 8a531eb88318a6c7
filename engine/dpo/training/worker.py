"""One training worker: `accelerate launch … -m engine.dpo.training.worker REQUEST`.

It reads the request, trains its share of each step, and reports to the process that started it (`worker_messages`). All
output, including that of libraries, goes to its own log. It exits when its standard input closes, which means that its
parent is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn, TypeVar, cast

from engine.core.config import Stage3Config
from engine.core.errors import Stopped
from engine.core.events import Event, TrainStep
from engine.dpo.planning.plan import TrainingPlan
from engine.dpo.training.process_group import ProcessGroup
from engine.dpo.training.worker_messages import STOP, Request, Result, WorkerReporter, rank_log
from engine.process.environment import disable_core_dumps, log_to_file, quiet_libraries
from engine.process.job_signals import obey_parent_signals_only
from engine.run.folder import Run
from engine.run.stop import StopToken

LOST_PEER_DELAY_SECONDS = 5.0
"""How long a worker that lost another one waits before it exits, so that the launcher first notices the one that failed."""

log = logging.getLogger(__name__)
T = TypeVar("T")


def main(path: str) -> int:
    quiet_libraries()
    disable_core_dumps()
    request, group = Request.read(Path(path)), ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    reporter = WorkerReporter(os.dup(1), group.rank)
    redirect_output(rank_log(Run(Path(request.run)), group.rank))
    obey_parent_signals_only()  # the launcher
    reporter.started()
    stop = StopToken()
    Thread(target=watch_stdin, args=(stop,), name="watch stdin", daemon=True).start()
    try:
        run_request(request, group, reporter, stop)
    except Stopped:
        log.info("stopped on request")
        reporter.stopped()
    except BaseException as error:  # reported to the parent; the traceback goes to this worker's log
        log.error("training failed", exc_info=error)
        report_failure(reporter, error)
        exit_now(1)
    exit_now(0)


def run_request(request: Request, group: ProcessGroup, reporter: WorkerReporter, stop: StopToken) -> None:
    from engine.dpo.training.trainer import train_as_rank

    plan = TrainingPlan.from_dict(request.plan)
    assert plan is not None  # the parent wrote it
    config = with_local_gpu(Stage3Config(**request.config))
    run = Run(Path(request.run), shared_cache=Path(request.cache))
    training = train_as_rank(config, run, plan, request.reference_sha256, group, stop=stop, max_steps=request.max_steps)
    trained = run_training(training, reporter if group.is_main else None)
    peak = max(group.gather(trained.peak_bytes))
    if group.is_main:
        reporter.result(Result(trained.first_loss, trained.resumed_from, trained.seconds, peak))


def run_training(training: Generator[Event, None, T], reporter: WorkerReporter | None) -> T:
    """Run training to its end: write each step to this worker's log, and send all events to `reporter`."""
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            return cast(T, end.value)
        if isinstance(event, TrainStep):
            log.info("step %d of %d: loss %.6f", event.step, event.total_steps, event.loss)
        if reporter is not None:
            reporter.event(event)


def with_local_gpu(config: Stage3Config) -> Stage3Config:
    """`config` with this worker's GPU."""
    from engine.machine.device import resolve_device

    if resolve_device(config).type != "cuda":
        return config
    return config.model_copy(update={"device": f"cuda:{os.environ['LOCAL_RANK']}"})


def report_failure(reporter: WorkerReporter, error: BaseException) -> None:
    from engine.machine.device_errors import is_out_of_memory
    from engine.machine.error_mapping import as_stage3_error

    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        reporter.failed("memory", str(error))
    elif (stage3_error := as_stage3_error(error)) is not None:
        what, why, what_to_do = stage3_error.what, stage3_error.why, stage3_error.what_to_do
        reporter.failed("error", what, why, what_to_do, int(stage3_error.exit_code))
    elif is_lost_connection(error):
        reporter.failed("lost", text)
        time.sleep(LOST_PEER_DELAY_SECONDS)
    else:
        reporter.failed("bug", text, "".join(traceback.format_tb(error.__traceback__)[-1:]))


def is_lost_connection(error: BaseException) -> bool:
    """Whether another worker did not respond: it exited, or did not reach the collective within WAIT_SECONDS."""
    from torch.distributed import DistError

    text = str(error).lower()
    phrases = ("gloo", "connection closed", "connection reset", "timed out waiting", "broken pipe", "nccl")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)
    )


def watch_stdin(stop: StopToken) -> None:
    """All workers share one standard input: one of them reads the command, all of them notice when it closes."""
    while line := os.read(0, 1 << 10):
        if STOP.encode() in line:
            stop.request("requested by the process that started training")
    log.error("the process that started training is gone: exiting")
    exit_now(1)


def redirect_output(path: Path) -> None:
    """Redirect all output to this worker's log, also that of C++ code and from before Python's logging is set up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    log_to_file(path)


def exit_now(code: int) -> NoReturn:
    """Exit without joining threads: those of a library may be waiting for workers that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
