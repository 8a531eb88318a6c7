"""Run the ten stages in order: reuse what is still valid, do again what is not, and do the rest.

A generator of events. Resume is by evidence (`engine.pipeline.graph`): a finished stage whose result would be the same is
reused. If an input changed, the stage is done again into new files, and later stages only if a result that they use has
changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence

from engine import __version__
from engine.core.errors import (
    DamagedState,
    DataError,
    DiskError,
    ExitCode,
    RestartNeeded,
    Stage3Error,
    Stopped,
    UnsafeError,
)
from engine.core.events import Event, Message, Outcome, RunFinished, StageFinished, StageStale, StageStarted, with_stage
from engine.core.layout import RESERVE, RUN_LOG
from engine.core.stage_table import STAGE, STAGES
from engine.machine.device_errors import is_broken_device
from engine.machine.error_mapping import as_stage3_error, is_panic
from engine.pipeline.graph import changes, evidence_of, load_stage, outputs_to_set_aside
from engine.run.context import Context
from engine.run.reserve import remove_reserve
from engine.stages.base import StageEnd

CHANGES_SHOWN = 4

log = logging.getLogger(__name__)


def run_pipeline(
    context: Context, *, until: str = STAGES[-1], redo_from: str | None = None
) -> Generator[Event, None, ExitCode]:
    """Run the stages up to `until`. With `redo_from`, that stage and those after it are done again in any case.

    Ends with RunFinished and returns the exit code. A failure is recorded in `run.json`, reported in StageFinished, and
    decides the exit code. Raises only RestartNeeded, after a message: the run continues in another process.
    """
    if redo_from is not None:
        yield from _redo_from(context, redo_from)
    code, last = yield from run_stages(context, STAGES[: STAGES.index(until) + 1])
    if code is ExitCode.DONE:
        record_success(context)
    yield RunFinished(int(code), context.run.stage(last).get("summary", ""))
    return code


def run_stages(context: Context, names: Sequence[str]) -> Generator[Event, None, tuple[ExitCode, str]]:
    """Run these stages until one fails. Returns the exit code and the stage that ran last."""
    for name in names:
        code = yield from _run_stage(context, name)
        if code is not ExitCode.DONE:
            return code, name
    return ExitCode.DONE, names[-1]


def _run_stage(context: Context, name: str) -> Generator[Event, None, ExitCode]:
    try:
        stage = load_stage(name)
        evidence = evidence_of(context, name, stage=stage)
        recorded = context.run.stage(name)
        changed = [] if evidence is None else changes(name, recorded.get("depends_on") or {}, evidence)
        if recorded.get("status") in ("done", "skipped") and evidence is not None and not changed:
            yield StageFinished(
                name, "skipped", recorded.get("summary", ""), reused=True, facts=context.run.result(name)
            )
            return ExitCode.DONE
        if recorded and changed:
            why = "; ".join(map(str, changed[:CHANGES_SHOWN]))
            yield from _make_stale(context, [name], outputs_to_set_aside(name, changed), why)
        yield StageStarted(name, STAGE[name].sentence)
        started, began = time.time(), time.monotonic()
        context.run.record_stage(name, status="running", depends_on=evidence, started=started, error=None)
        context.stop.raise_if_requested()
        end: StageEnd = yield from with_stage(stage.run(context), name)
        _record_end(context, name, end, time.monotonic() - began)
    except BaseException as error:  # the one place where a failure becomes an event, a record and an exit code
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        restart = _restart_for(context, name, error)
        if restart is None:
            return (yield from _fail(context, name, error))
        log.info("stage %s continues in another process", name, exc_info=error)
        yield Message("warning", str(restart), name)
        raise restart from error  # the stage stays "running" for the process that continues it
    yield StageFinished(name, end.outcome, end.summary, facts=end.facts)
    return ExitCode.DONE


def _record_end(context: Context, name: str, end: StageEnd, seconds: float) -> None:
    context.run.record_stage(
        name, status=end.outcome, summary=end.summary, result=end.facts, seconds=round(seconds, 3), error=None
    )


def _restart_for(context: Context, name: str, error: BaseException) -> RestartNeeded | None:
    """The request for a fresh process, if that may fix `error` (for a broken device, once per stage); else None. Also None
    if a stop was requested: then the run ends, and the next start continues.
    """
    if context.stop.requested:
        return None
    if isinstance(error, RestartNeeded):
        return error
    if not is_broken_device(error) or context.run.stage(name).get("broken_device"):
        return None
    first_line = str(error).splitlines()[0]
    context.run.record_stage(name, broken_device=first_line)
    return RestartNeeded("The CUDA context is broken.", first_line, "The run continues once in a fresh process.")


def _fail(context: Context, name: str, error: BaseException) -> Generator[Event, None, ExitCode]:
    if isinstance(error, RestartNeeded):  # a stop was requested, too: it wins, and the plan is on disk
        error = _stopped(context) or error
    known = as_stage3_error(error)
    if known is None:
        log.error("stage %s crashed", name, exc_info=error)
        known = Stage3Error(
            f"Stage {name} crashed: {type(error).__name__}: {error}",
            "This is a bug in stage3-tui, or an unsupported version of a library.",
            f"The traceback is in {context.run / RUN_LOG}; please report it.",
        )
    else:
        log.info("stage %s ended: %s", name, known, exc_info=error)
    outcome: Outcome = "failed"
    if isinstance(known, Stopped):
        outcome = "stopped"
    elif isinstance(known, (DataError, UnsafeError)):
        outcome = "refused"
    if isinstance(known, DiskError):
        remove_reserve(context.run / RESERVE)
    try:
        context.run.record_stage(name, status=outcome, summary=known.what, error=known.as_dict())
        context.run.manifest["error"] = {"stage": name, **known.as_dict()}
        context.run.save()
    except (OSError, DamagedState, UnsafeError) as unwritable:  # must not hide the original failure
        if str(unwritable) != str(known):
            yield Message("error", f"Cannot write run.json: {unwritable}")
    yield StageFinished(
        name,
        outcome,
        known.what,
        what=known.what,
        why=known.why,
        what_to_do=known.what_to_do,
        exit_code=int(known.exit_code),
    )
    return known.exit_code


def _stopped(context: Context) -> Stopped | None:
    try:
        context.stop.raise_if_requested()
    except Stopped as stopped:
        return stopped
    return None


def _redo_from(context: Context, first: str) -> Generator[Event, None, None]:
    """Forget stage `first` and all after it, whether or not anything changed; none of their records is reused.

    All their files are set aside, also those of unrecorded stages: an earlier attempt may have ended halfway.
    """
    following = STAGES[STAGES.index(first) :]
    names = [name for name in following if context.run.stage(name)]
    outputs = tuple(output for name in following for output in STAGE[name].outputs)
    yield from _make_stale(context, names, outputs, f"--from {first}", reusable=False)


def _make_stale(
    context: Context, names: Sequence[str], outputs: Sequence[str], why: str, *, reusable: bool = True
) -> Generator[Event, None, None]:
    """Forget the stages, and set these files aside.

    reusable   whether the next attempt may reuse records among them
    """
    for name in names:
        # No longer done, but not forgotten until its files are set aside, so that a start after a crash here checks again.
        context.run.record_stage(name, status="running")
    folder = context.run.set_aside(*outputs, why=why, reusable=reusable)
    for name in names:
        context.run.forget_stage(name)
    for number, name in enumerate(names):
        where = f" Its files are now in {folder}." if folder is not None and number == 0 else ""
        yield Message("info", f"Doing {STAGE[name].title} again ({why}).{where}", name)
        yield StageStale(name, why)


def record_success(context: Context) -> None:
    context.run.manifest["error"] = None
    context.run.manifest["version"] = __version__
    context.run.save()
