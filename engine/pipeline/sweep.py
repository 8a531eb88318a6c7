"""A sweep: pairs and quality once, then one training per trial, all evaluated on the same half of the held-out pairs.

The best of many trials looks better than it is on the pairs that selected it (the winner's curse). So trials are compared
on the first half, and the picked one gets its verdict on the second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.core import layout
from engine.core.errors import ConfigError, DataError, ExitCode, RestartNeeded
from engine.core.events import (
    Event,
    Message,
    Outcome,
    RunFinished,
    StageFinished,
    TrainStep,
    TrialFinished,
    TrialStarted,
    TrialStep,
)
from engine.core.stage_table import STAGES
from engine.machine.error_mapping import as_stage3_error
from engine.pipeline.best_trial import RULE, best_of
from engine.pipeline.loop import record_success, run_stages
from engine.pipeline.session import record_configuration
from engine.pipeline.trials import Trial, share_inputs, trial_context
from engine.run.context import Context
from engine.run.journal import Journal
from engine.run.reports import EvaluationReport
from engine.security.redaction import redacted
from engine.storage.documents import read_json_or_none
from engine.storage.files import write_json

BEFORE_TRAINING = STAGES[: STAGES.index("training")]
FROM_TRAINING = STAGES[STAGES.index("training") :]
BEST = "best"
CONTINUE_AFTER = (ExitCode.NUMBERS, ExitCode.DATA)
"""Failures caused by a trial's own options; any other failure would hit the next trial, too."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialOutcome:
    """One row of the table."""

    name: str
    options: dict[str, Any]
    outcome: Outcome
    summary: str = ""
    verdict: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    final_loss: float | None = None
    seconds: float | None = None


def run_sweep(context: Context, trials: Sequence[Trial], pick: str | None = None) -> Generator[Event, None, ExitCode]:
    """Run the stages before training, the trials, and, with `pick` ("best" or a trial's name), training and packaging of
    the picked one. Ends with RunFinished and returns the exit code. Raises RestartNeeded as `run_pipeline` does.
    """
    try:
        return (yield from _sweep(context, trials, pick))
    except RestartNeeded:
        raise
    except Exception as error:  # failures between stages: a full disk, a trial's folder in use
        known = as_stage3_error(error)
        if known is None:
            raise
        log.info("the sweep ended: %s", known, exc_info=error)
        yield Message("error", str(known), "training")
        yield RunFinished(int(known.exit_code), known.what)
        return known.exit_code


def _sweep(context: Context, trials: Sequence[Trial], pick: str | None) -> Generator[Event, None, ExitCode]:
    code, last = yield from run_stages(context, BEFORE_TRAINING)
    if code is not ExitCode.DONE:
        yield RunFinished(int(code), context.run.stage(last).get("summary", ""))
        return code
    outcomes: list[TrialOutcome] = []
    for number, trial in enumerate(trials, start=1):
        code, outcome = yield from _run_trial(context, trial, number, len(trials))
        outcomes.append(outcome)
        write_report(context, outcomes)
        if code is not ExitCode.DONE and code not in CONTINUE_AFTER:
            yield RunFinished(int(code), f"trial {trial.name}: {outcome.summary}")
            return code
    if pick is None:
        record_success(context)
        yield RunFinished(0, f"{len(trials)} trials; pick one with --pick best or --pick NAME")
        return ExitCode.DONE
    return (yield from _train_picked(context, trials, outcomes, pick))


def _run_trial(
    context: Context, trial: Trial, number: int, total: int
) -> Generator[Event, None, tuple[ExitCode, TrialOutcome]]:
    """Train and evaluate one trial; its own journal has every event."""
    own, started = trial_context(context, trial), time.monotonic()
    own.run.acquire()
    try:
        share_inputs(context, own)
        record_configuration(own)
        yield TrialStarted(trial.name, number, total, dict(trial.options), str(own.run.folder))
        journal, reused = Journal(own.run / layout.EVENTS_JSONL), False
        stages = run_stages(own, ("training",))
        try:
            while True:
                event = next(stages)
                journal.append(redacted(event))
                reused = reused or (isinstance(event, StageFinished) and event.reused)
                yield from _forwarded_event(trial, event)
        except StopIteration as end:
            code, _ = end.value
        finally:
            journal.close()
        outcome = _outcome_of(own, trial, None if reused else time.monotonic() - started)
    finally:
        own.run.release()
    yield TrialFinished(reused=reused, **{key: value for key, value in asdict(outcome).items() if key != "options"})
    return code, outcome


def _forwarded_event(trial: Trial, event: Event) -> Generator[Event, None, None]:
    """The event of the sweep for an event of the trial, if there is one."""
    if isinstance(event, TrainStep):
        yield TrialStep(trial.name, event.step, event.total_steps, event.loss, event.margin, event.accuracy)
    elif isinstance(event, Message) and event.level in ("warning", "error"):
        yield Message(event.level, f"{trial.name}: {event.text}", "training")


def _outcome_of(own: Context, trial: Trial, seconds: float | None) -> TrialOutcome:
    recorded, result = own.run.stage("training"), own.run.results.training
    return TrialOutcome(
        name=trial.name,
        options=dict(trial.options),
        outcome=recorded.get("status", "failed"),
        summary=str(recorded.get("summary", "")),
        verdict="" if result is None else result.verdict,
        figures=_figures_of(own),
        final_loss=None if result is None else result.final_loss,
        seconds=recorded.get("seconds") if seconds is None else round(seconds, 3),
    )


def _figures_of(own: Context) -> dict[str, Any]:
    report = read_json_or_none(own.run / layout.EVALUATION_REPORT, EvaluationReport)
    return {} if report is None else dict(report.figures)  # None: the trial was not evaluated


def write_report(context: Context, outcomes: Sequence[TrialOutcome], picked: str | None = None) -> None:
    table = {"trials": [asdict(outcome) for outcome in outcomes], "picked": picked, "rule": RULE}
    write_json(context.run / layout.SWEEP_REPORT, table)


# -- the choice --------------------------------------------------------------------------------------------------------


def find_picked(outcomes: Sequence[TrialOutcome], pick: str) -> TrialOutcome:
    """The trial with that name or number (from 1), or the best. Raises ConfigError for an unknown one, DataError if no
    trial may be picked.
    """
    if pick != BEST:
        named = next((each for number, each in enumerate(outcomes, 1) if pick in (each.name, str(number))), None)
        if named is None:
            names = ", ".join(each.name for each in outcomes)
            raise ConfigError(f"--pick {pick!r} is not a trial of this sweep.", f"It has {names}.", "Pass one of them.")
        return named
    found = best_of(outcomes)
    if found is None:
        raise DataError(
            "No trial can be picked.",
            "Each one failed, or made the model worse than Stage 2.",
            "Try other options, or browse the pairs (`stage3-tui`, then b).",
        )
    return found


def _train_picked(
    context: Context, trials: Sequence[Trial], outcomes: Sequence[TrialOutcome], pick: str
) -> Generator[Event, None, ExitCode]:
    """Run stages training and packaging with the picked trial's options: its checkpoint is reused, its verdict is new."""
    chosen = find_picked(outcomes, pick)
    write_report(context, outcomes, chosen.name)
    options = next(trial.options for trial in trials if trial.name == chosen.name)
    yield Message(
        "info",
        f"Picked {chosen.name}. The best of {len(outcomes)} trials looks better than it is on the pairs that chose it, so "
        "its verdict comes from the held-out pairs that no trial has seen.",
        "training",
    )
    context.config = context.config.model_copy(update={**options, "eval_part": "second"})
    record_configuration(context)
    code, last = yield from run_stages(context, FROM_TRAINING)
    if code is ExitCode.DONE:
        record_success(context)
    yield RunFinished(int(code), context.run.stage(last).get("summary", ""))
    return code
