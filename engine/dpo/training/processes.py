"""Train on several processes: start them with accelerate's launcher, pass on what they tell, and take what they trained.

They are children in a group of their own. The journal has one writer still, and so has each checkpoint. What they trained is
in the last checkpoint, which this process takes as it takes every other one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import Stopped
from engine.core.events import Event, Message, Stalled, TrainStep, event_from_dict
from engine.dpo.planning.plan import TrainingPlan, current_plan
from engine.dpo.training.blame import Blame
from engine.dpo.training.checkpoints import by_step, step_of
from engine.dpo.training.dataset import Row
from engine.dpo.training.launcher import REQUEST_JSON, launched
from engine.dpo.training.trainer import STAGE, Trained, expected_reference, train
from engine.dpo.training.voice import STOP, Heard, Request
from engine.models.loading import dtype_name, resolve_dtype
from engine.process.interactive_child import InteractiveChild
from engine.process.suspended import SuspendedProcesses
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.storage.jsonl import loads

TOUCH_SECONDS = 1.0


def train_as_planned(
    config: Stage3Config,
    run: Run,
    rows: Sequence[Row],
    *,
    stop: StopToken,
    token: str | None = None,
    reference_sha256: str | None = None,
    plan: TrainingPlan | None = None,
    max_steps: int = -1,
) -> Generator[Event, None, Trained]:
    """`train`, on as many processes as the plan has; several read the pairs from the run's training set. Raises as `train` does,
    and Stage3Error if a process ended or hung.
    """
    plan = plan or current_plan(run, config, dtype_name(resolve_dtype(config)))
    expected = reference_sha256 or expected_reference(run)
    here = partial(
        train, config, run, rows, stop=stop, token=token, reference_sha256=expected, plan=plan, max_steps=max_steps
    )
    if plan.processes == 1:
        return (yield from here())
    heard = yield from _train_elsewhere(config, run, plan, expected, max_steps, stop)
    trained = yield from here()
    if heard.result is None:
        return trained
    known = heard.result
    return replace(
        trained,
        first_loss=known.first_loss,
        resumed_from=known.resumed_from,
        seconds=known.seconds,
        peak_bytes=max(known.peak_bytes, trained.peak_bytes),
    )


def _train_elsewhere(
    config: Stage3Config, run: Run, plan: TrainingPlan, expected: str, max_steps: int, stop: StopToken
) -> Generator[Event, None, Heard]:
    """Until all processes have ended. Raises what made them end, or Stopped."""
    (run / layout.PROCESSES_DIR).mkdir(parents=True, exist_ok=True)
    for old in (run / layout.PROCESSES_DIR).glob("rank-*.log"):
        old.unlink()
    given = config.model_dump(mode="json")
    request = Request(given, str(run.folder), str(run.cache), expected, plan.as_dict(), max_steps)
    request.write(run / REQUEST_JSON)
    where = f" on {config.num_machines} machines" if config.num_machines > 1 else ""
    yield Message(
        "info", f"{plan.processes} processes train together{where}; the log of each is in {layout.PROCESSES_DIR}/."
    )
    try:
        with launched(config, run, plan.processes) as talk:
            heard, step = yield from _listen(run, stop, talk)
            beside = "\n".join(talk.stderr.tail)
    finally:
        (run / REQUEST_JSON).unlink(missing_ok=True)  # other machines wait for the next one
    stop.raise_if_requested()
    if heard.stopped:
        raise Stopped("asked on another machine that trains")
    if heard.result is None:
        raise Blame(run, config, plan, heard.failures, beside, step).error()
    return heard


def _listen(run: Run, stop: StopToken, talk: InteractiveChild) -> Generator[Event, None, tuple[Heard, int]]:
    """What was heard, and the last step."""
    heard, watch, stop_told, touched = Heard(), SuspendedProcesses(), False, 0.0
    step = max(map(step_of, by_step(run / layout.CHECKPOINTS_DIR)), default=0)
    for line in talk.lines():
        if stop.requested and not stop_told:
            stop_told = True
            talk.send(STOP)
        if time.monotonic() - touched > TOUCH_SECONDS:
            touched = time.monotonic()
            os.utime(run / REQUEST_JSON)  # a machine that joins sees that somebody is behind it
        event = None if line is None else _understood(line, heard)
        if isinstance(event, TrainStep):
            step = event.step
        if event is not None:
            yield event
        yield from _told_of_stopped(watch.look(heard.pids), heard.pids)
    if heard.result is not None:
        yield from _told_of_stopped(watch.end(), heard.pids)
    return heard, step


def _understood(line: bytes, heard: Heard) -> Event | None:
    """The event of a line; what else it tells is noted. What is no line of ours, of a library perhaps, is passed over."""
    try:
        told = loads(line)
        if isinstance(told, dict) and isinstance(told.get("event"), dict):
            return event_from_dict(told["event"])
        if isinstance(told, dict):
            heard.note(told)
    except (ValueError, TypeError):
        return None
    return None


def _told_of_stopped(changes: Sequence[tuple[int, float]], pids: Mapping[int, int]) -> Iterator[Event]:
    for rank, seconds in changes:
        yield Stalled(STAGE, seconds)
        if not seconds:
            yield Message("info", f"Process {rank} goes on.")
            continue
        text = f"Process {rank} of the {len(pids)} that train (pid {pids[rank]}) is stopped (SIGSTOP), and the others wait."
        yield Message("warning", f"{text} `kill -CONT {pids[rank]}` lets it go on.")
