"""One of several processes that train: `accelerate launch … -m engine.dpo.training.worker REQUEST`.

It reads the request, trains its share of each step, and tells the process that started it what happens (`voice`). All that
it or a library writes goes into its own log. It ends when its standard input ends, which is when nobody waits for it any more.
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
from engine.dpo.training.ranks import Ranks
from engine.dpo.training.voice import STOP, Request, Result, Voice, rank_log
from engine.process.environment import disable_core_dumps, log_to_file, quiet_libraries
from engine.process.job_signals import obey_parent_signals_only
from engine.run.folder import Run
from engine.run.stop import StopToken

BEHIND_SECONDS = 5.0
"""How long a process that lost another stays: the launcher is to see first who went first."""

log = logging.getLogger(__name__)
T = TypeVar("T")


def main(path: str) -> int:
    quiet_libraries()
    disable_core_dumps()
    request, ranks = Request.read(Path(path)), Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    voice = Voice(os.dup(1), ranks.rank)
    write_into(rank_log(Run(Path(request.run)), ranks.rank))
    obey_parent_signals_only()  # the launcher
    voice.here()
    stop = StopToken()
    Thread(target=listen, args=(stop,), name="listen", daemon=True).start()
    try:
        work(request, ranks, voice, stop)
    except Stopped:
        log.info("stopped on request")
        voice.stopped()
    except BaseException as error:  # told to the process that waits, with the traceback in this one's log
        log.error("the training ended", exc_info=error)
        tell_failure(voice, error)
        leave(1)
    leave(0)


def work(request: Request, ranks: Ranks, voice: Voice, stop: StopToken) -> None:
    from engine.dpo.training.trainer import train_share

    plan = TrainingPlan.from_dict(request.plan)
    assert plan is not None  # the other process wrote it
    config = of_this_process(Stage3Config(**request.config))
    run = Run(Path(request.run), shared_cache=Path(request.cache))
    training = train_share(config, run, plan, request.reference_sha256, ranks, stop=stop, max_steps=request.max_steps)
    trained = told(training, voice) if ranks.is_first else told(training, None)
    peak = max(ranks.gather(trained.peak_bytes))
    if ranks.is_first:
        voice.result(Result(trained.first_loss, trained.resumed_from, trained.seconds, peak))


def told(training: Generator[Event, None, T], voice: Voice | None) -> T:
    """Run to the end; the events go to the other process, and the steps into this one's log."""
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            return cast(T, end.value)
        if isinstance(event, TrainStep):
            log.info("step %d of %d: loss %.6f", event.step, event.total_steps, event.loss)
        if voice is not None:
            voice.event(event)


def of_this_process(config: Stage3Config) -> Stage3Config:
    """With the GPU of this process."""
    from engine.machine.device import resolve_device

    if resolve_device(config).type != "cuda":
        return config
    return config.model_copy(update={"device": f"cuda:{os.environ['LOCAL_RANK']}"})


def tell_failure(voice: Voice, error: BaseException) -> None:
    from engine.machine.device_errors import is_out_of_memory
    from engine.machine.error_mapping import as_stage3_error

    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        voice.failed("memory", str(error))
    elif (known := as_stage3_error(error)) is not None:
        voice.failed("error", known.what, known.why, known.what_to_do, int(known.exit_code))
    elif is_lost_connection(error):
        voice.failed("lost", text)
        time.sleep(BEHIND_SECONDS)
    else:
        voice.failed("bug", text, "".join(traceback.format_tb(error.__traceback__)[-1:]))


def is_lost_connection(error: BaseException) -> bool:
    """Whether another process did not answer: it ended, or did not come for WAIT_SECONDS."""
    from torch.distributed import DistError

    said = str(error).lower()
    of_gloo = ("gloo", "connection closed", "connection reset", "timed out waiting", "broken pipe", "nccl")
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and any(word in said for word in of_gloo))


def listen(stop: StopToken) -> None:
    """All processes have one standard input: one of them hears the word, all see its end."""
    while line := os.read(0, 1 << 10):
        if STOP.encode() in line:
            stop.request("asked by the process that started the training")
    log.error("nobody waits for this process any more: it ends")
    leave(1)


def write_into(path: Path) -> None:
    """All that is written goes into this process's log: also by C++, and before Python's logging is set up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    log_to_file(path)


def leave(code: int) -> NoReturn:
    """At once: threads of a library may wait for processes that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
