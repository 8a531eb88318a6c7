"""Train in several processes: start workers with accelerate's launcher, relay their events, and load what they trained.

The workers are child processes in a group of their own. The journal still has a single writer, and so does each checkpoint.
The result of training is the last checkpoint, which this process loads like any other.
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
from engine.dpo.training.checkpoints import by_step, step_of
from engine.dpo.training.dataset import Row
from engine.dpo.training.failure_diagnosis import FailureDiagnosis
from engine.dpo.training.launcher import REQUEST_JSON, launch_workers
from engine.dpo.training.trainer import STAGE, Trained, expected_reference, train
from engine.dpo.training.worker_messages import STOP, Request, WorkerReports
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
    """`train` in as many processes as the plan has; workers read the pairs from the run's training set. Raises as `train`
    does, and Stage3Error if a worker exited or hung.
    """
    plan = plan or current_plan(run, config, dtype_name(resolve_dtype(config)))
    expected = reference_sha256 or expected_reference(run)
    train_here = partial(
        train, config, run, rows, stop=stop, token=token, reference_sha256=expected, plan=plan, max_steps=max_steps
    )
    if plan.processes == 1:
        return (yield from train_here())
    reports = yield from _train_in_workers(config, run, plan, expected, max_steps, stop)
    trained = yield from train_here()  # loads the last checkpoint
    if reports.result is None:
        return trained
    result = reports.result
    return replace(
        trained,
        first_loss=result.first_loss,
        resumed_from=result.resumed_from,
        seconds=result.seconds,
        peak_bytes=max(result.peak_bytes, trained.peak_bytes),
    )


def _train_in_workers(
    config: Stage3Config, run: Run, plan: TrainingPlan, expected: str, max_steps: int, stop: StopToken
) -> Generator[Event, None, WorkerReports]:
    """Run the workers until all have exited. Raises the error that made them fail, or Stopped."""
    (run / layout.PROCESSES_DIR).mkdir(parents=True, exist_ok=True)
    for old_log in (run / layout.PROCESSES_DIR).glob("rank-*.log"):
        old_log.unlink()
    options = config.model_dump(mode="json")
    request = Request(options, str(run.folder), str(run.cache), expected, plan.as_dict(), max_steps)
    request.write(run / REQUEST_JSON)
    where = f" on {config.num_machines} machines" if config.num_machines > 1 else ""
    yield Message(
        "info", f"{plan.processes} processes are training together{where}; their logs are in {layout.PROCESSES_DIR}/."
    )
    try:
        with launch_workers(config, run, plan.processes) as launcher:
            reports, step = yield from _relay_messages(run, stop, launcher)
            launcher_output = "\n".join(launcher.stderr.tail)
    finally:
        (run / REQUEST_JSON).unlink(missing_ok=True)  # so that other machines wait for the next request
    stop.raise_if_requested()
    if reports.stopped:
        raise Stopped("requested on another machine")
    if reports.result is None:
        raise FailureDiagnosis(run, config, plan, reports.failures, launcher_output, step).error()
    return reports


def _relay_messages(
    run: Run, stop: StopToken, launcher: InteractiveChild
) -> Generator[Event, None, tuple[WorkerReports, int]]:
    """Yield the workers' events. Returns their other messages, and the last step."""
    reports, stopped_processes, stop_sent, touched = WorkerReports(), SuspendedProcesses(), False, 0.0
    step = max(map(step_of, by_step(run / layout.CHECKPOINTS_DIR)), default=0)
    for line in launcher.lines():
        if stop.requested and not stop_sent:
            stop_sent = True
            launcher.send(STOP)
        if time.monotonic() - touched > TOUCH_SECONDS:
            touched = time.monotonic()
            os.utime(run / REQUEST_JSON)  # shows machines that want to join that the request is live
        event = None if line is None else _parse_message(line, reports)
        if isinstance(event, TrainStep):
            step = event.step
        if event is not None:
            yield event
        yield from _stopped_or_resumed(stopped_processes.poll(reports.pids), reports.pids)
    if reports.result is not None:
        yield from _stopped_or_resumed(stopped_processes.finish(), reports.pids)
    return reports, step


def _parse_message(line: bytes, reports: WorkerReports) -> Event | None:
    """The event in a line, if it has one; other messages are added to `reports`. Ignores output that is not ours."""
    try:
        message = loads(line)
        if isinstance(message, dict) and isinstance(message.get("event"), dict):
            return event_from_dict(message["event"])
        if isinstance(message, dict):
            reports.add(message)
    except (ValueError, TypeError):
        return None
    return None


def _stopped_or_resumed(changes: Sequence[tuple[int, float]], pids: Mapping[int, int]) -> Iterator[Event]:
    for rank, seconds in changes:
        yield Stalled(STAGE, seconds)
        if not seconds:
            yield Message("info", f"Rank {rank} has resumed.")
            continue
        text = f"Rank {rank} of the {len(pids)} training processes (pid {pids[rank]}) is stopped (SIGSTOP); the others wait for it."
        yield Message("warning", f"{text} Resume it with `kill -CONT {pids[rank]}`.")
