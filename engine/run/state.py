"""The state that screens show, as a pure fold of events: `state = state.apply(event, time)`.

The wizard, `attach`, `status` and the printer of `--auto` all show this one fold, so a second terminal shows the same as the
first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from typing import Any, Literal

from engine.core.events import (
    Check,
    CheckpointSaved,
    EvalDone,
    Event,
    Forecast,
    Message,
    PairFailed,
    PairMade,
    PilotDone,
    Progress,
    RunFinished,
    RunStarted,
    Servers,
    StageFinished,
    StageStale,
    StageStarted,
    Stalled,
    Telemetry,
    TrainStep,
    TrialFinished,
    TrialStarted,
    TrialStep,
)
from engine.core.stage_table import STAGES
from engine.run.journal import Entry

log = logging.getLogger(__name__)

StageStatus = Literal["waiting", "running", "done", "skipped", "failed", "refused", "stopped"]

NEWEST_PAIRS_KEPT = 60
MESSAGES_KEPT = 400
TELEMETRY_KEPT = 600


@dataclass(frozen=True)
class StageState:
    name: str
    status: StageStatus = "waiting"
    sentence: str = ""
    summary: str = ""
    reused: bool = False
    started: float | None = None
    finished: float | None = None
    checks: tuple[Check, ...] = ()
    progress: Progress | None = None
    failure: StageFinished | None = None
    """The event with the error, if the stage failed, refused or stopped."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The result of the finished stage, as plain data."""

    def elapsed(self, now: float) -> float | None:
        """Seconds since the stage started, or its duration once finished. Never negative; None before the start."""
        if self.started is None:
            return None
        return max(0.0, (self.finished if self.finished is not None else now) - self.started)


@dataclass(frozen=True)
class TrialState:
    """One training of a sweep."""

    name: str
    number: int
    options: Mapping[str, Any] = field(default_factory=dict)
    run_dir: str = ""
    started: float | None = None
    steps: tuple[TrialStep, ...] = ()
    finished: TrialFinished | None = None


@dataclass(frozen=True)
class RunState:
    stages: Mapping[str, StageState] = field(default_factory=lambda: {name: StageState(name) for name in STAGES})
    run: RunStarted | None = None
    running: bool = False
    last_seq: int = -1
    last_time: float = 0.0
    newest_pairs: tuple[PairMade | PairFailed, ...] = ()
    pairs_made: int = 0
    pair_failures: Mapping[str, int] = field(default_factory=dict)
    """Number of prompts without a pair, by reason."""
    train_steps: tuple[TrainStep, ...] = ()
    first_step_seen: tuple[int, float] | None = None
    """The first optimizer step of the current process, and its time. The rate is measured from there."""
    checkpoints: tuple[CheckpointSaved, ...] = ()
    evaluation: EvalDone | None = None
    trials: Mapping[str, TrialState] = field(default_factory=dict)
    """The trials of the newest sweep, by name, in order."""
    trials_total: int = 0
    pilot: PilotDone | None = None
    forecast: Forecast | None = None
    telemetry: tuple[Telemetry, ...] = ()
    """The newest readings, oldest first."""
    peak_gpu_bytes: Mapping[int, int] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    """Peak resident memory of the process that runs the stages."""
    servers: Mapping[str, Servers] = field(default_factory=dict)
    """The newest reading of the servers that the running stage uses, by role."""
    messages: tuple[tuple[float, Message], ...] = ()
    stalled_since: float | None = None
    """Time of the running stage's last event, if the stage has stalled."""
    finished: RunFinished | None = None
    skipped_lines: int = 0
    """Number of journal lines that are damaged or from another version."""
    latest: str = ""
    """The stage that started or ended last, except for reused ones; empty before the first."""

    @property
    def current(self) -> StageState | None:
        """The running stage; None if no stage is running."""
        return next((stage for stage in self.stages.values() if stage.status == "running"), None)

    @property
    def next_stage(self) -> str | None:
        """The first stage that is neither done nor skipped; None if all are."""
        undone = (stage.name for stage in self.stages.values() if stage.status not in ("done", "skipped"))
        return next(undone, None)

    def expected_seconds(self, name: str, now: float) -> float | None:
        """Expected total duration of a stage: from its progress while it runs, else from preflight's forecast; None if unknown."""
        stage = self.stages[name]
        elapsed, progress = stage.elapsed(now), stage.progress
        if stage.status == "running" and elapsed is not None and progress is not None and progress.seconds_left:
            return elapsed + progress.seconds_left
        return None if self.forecast is None else self.forecast.seconds.get(name)

    def apply_entry(self, entry: Entry) -> RunState:
        if entry.seq <= self.last_seq:
            return self
        return replace(self.apply(entry.event, entry.time), last_seq=entry.seq, last_time=entry.time)

    @singledispatchmethod
    def apply(self, event: Event, time: float) -> RunState:
        return self

    @apply.register(RunStarted)
    def _(self, event: RunStarted, time: float) -> RunState:
        stages = {name: replace(stage, status=_interrupted(stage.status)) for name, stage in self.stages.items()}
        reset = replace(self, finished=None, first_step_seen=None, stalled_since=None)
        return replace(reset, run=event, running=True, stages=stages)

    @apply.register(StageStarted)
    def _(self, event: StageStarted, time: float) -> RunState:
        stage = StageState(event.stage, "running", event.sentence, started=time)
        state = replace(self._with_stage(stage), latest=event.stage, servers={})
        return replace(state, evaluation=None, first_step_seen=None) if event.stage == "training" else state

    @apply.register(StageFinished)
    def _(self, event: StageFinished, time: float) -> RunState:
        stage = self.stages[event.stage]
        if event.reused:
            # The checks and times that an earlier process reported still apply.
            facts = event.facts or stage.facts
            status: StageStatus = "skipped" if stage.status == "skipped" else "done"
            return self._with_stage(
                replace(stage, status=status, summary=event.summary, reused=True, failure=None, facts=facts)
            )
        failure = event if event.outcome in ("failed", "refused", "stopped") else None
        ended = replace(
            stage, status=event.outcome, summary=event.summary, finished=time, failure=failure, facts=event.facts
        )
        return replace(self._with_stage(ended), latest=event.stage)

    @apply.register(StageStale)
    def _(self, event: StageStale, time: float) -> RunState:
        before = self.stages[event.stage]
        reset = StageState(event.stage)
        if before.status == "running":  # it set its own files aside and is still working
            reset = replace(reset, status="running", sentence=before.sentence, started=before.started)
        state = self._with_stage(reset)
        if event.stage == "preflight":
            return replace(state, forecast=None, pilot=None)
        if event.stage == "pairs":
            return replace(state, newest_pairs=(), pairs_made=0, pair_failures={})
        if event.stage == "training":
            return replace(state, train_steps=(), checkpoints=(), evaluation=None, first_step_seen=None)
        return state

    @apply.register(Check)
    def _(self, event: Check, time: float) -> RunState:
        stage = self.stages[event.stage]
        others = tuple(check for check in stage.checks if check.name != event.name)
        if len(others) < len(stage.checks):
            checks = tuple(event if check.name == event.name else check for check in stage.checks)
        else:
            checks = (*stage.checks, event)
        return self._with_stage(replace(stage, checks=checks))

    @apply.register(Progress)
    def _(self, event: Progress, time: float) -> RunState:
        return self._with_stage(replace(self.stages[event.stage], progress=event))

    @apply.register(PairMade)
    def _(self, event: PairMade, time: float) -> RunState:
        newest = (*self.newest_pairs, event)[-NEWEST_PAIRS_KEPT:]
        return replace(self, newest_pairs=newest, pairs_made=self.pairs_made + 1)

    @apply.register(PairFailed)
    def _(self, event: PairFailed, time: float) -> RunState:
        newest = (*self.newest_pairs, event)[-NEWEST_PAIRS_KEPT:]
        failures = {**self.pair_failures, event.reason: self.pair_failures.get(event.reason, 0) + 1}
        return replace(self, newest_pairs=newest, pair_failures=failures)

    @apply.register(TrainStep)
    def _(self, event: TrainStep, time: float) -> RunState:
        # A resumed run repeats the steps after its checkpoint: the newest report of a step counts.
        kept = self.train_steps
        while kept and kept[-1].step >= event.step:
            kept = kept[:-1]
        first = self.first_step_seen or (event.step, time)
        state = self._with_stage(replace(self.stages["training"], progress=_progress_of(event, first, time)))
        return replace(state, train_steps=(*kept, event), first_step_seen=first)

    @apply.register(TrialStarted)
    def _(self, event: TrialStarted, time: float) -> RunState:
        trial = TrialState(event.name, event.number, event.options, event.run_dir, started=time)
        earlier = {} if event.number == 1 else self.trials
        return replace(self, trials={**earlier, event.name: trial}, trials_total=event.total, latest="training")

    @apply.register(TrialStep)
    def _(self, event: TrialStep, time: float) -> RunState:
        trial = self.trials.get(event.trial)
        if trial is None:
            return self  # the line with its start is damaged or from another version
        kept = tuple(step for step in trial.steps if step.step < event.step)
        return self._with_trial(replace(trial, steps=(*kept, event)))

    @apply.register(TrialFinished)
    def _(self, event: TrialFinished, time: float) -> RunState:
        trial = self.trials.get(event.name)
        return self if trial is None else self._with_trial(replace(trial, finished=event))

    @apply.register(CheckpointSaved)
    def _(self, event: CheckpointSaved, time: float) -> RunState:
        kept = tuple(saved for saved in self.checkpoints if saved.step < event.step)
        return replace(self, checkpoints=(*kept, event))

    @apply.register(PilotDone)
    def _(self, event: PilotDone, time: float) -> RunState:
        return replace(self, pilot=event)

    @apply.register(Forecast)
    def _(self, event: Forecast, time: float) -> RunState:
        return replace(self, forecast=event)

    @apply.register(EvalDone)
    def _(self, event: EvalDone, time: float) -> RunState:
        return replace(self, evaluation=event)

    @apply.register(Telemetry)
    def _(self, event: Telemetry, time: float) -> RunState:
        peaks = dict(self.peak_gpu_bytes)
        for gpu in event.gpus:
            peaks[gpu.index] = max(peaks.get(gpu.index, 0), gpu.memory_used_bytes or 0)
        return replace(
            self,
            telemetry=(*self.telemetry, event)[-TELEMETRY_KEPT:],
            peak_gpu_bytes=peaks,
            peak_rss_bytes=max(self.peak_rss_bytes, event.rss_bytes),
        )

    @apply.register(Servers)
    def _(self, event: Servers, time: float) -> RunState:
        return replace(self, servers={**self.servers, event.role: event})

    @apply.register(Stalled)
    def _(self, event: Stalled, time: float) -> RunState:
        return replace(self, stalled_since=time - event.seconds if event.seconds else None)

    @apply.register(Message)
    def _(self, event: Message, time: float) -> RunState:
        return replace(self, messages=(*self.messages, (time, event))[-MESSAGES_KEPT:])

    @apply.register(RunFinished)
    def _(self, event: RunFinished, time: float) -> RunState:
        return replace(self, running=False, finished=event, stalled_since=None)

    def _with_trial(self, trial: TrialState) -> RunState:
        return replace(self, trials={**self.trials, trial.name: trial})

    def _with_stage(self, stage: StageState) -> RunState:
        return replace(self, stages={**self.stages, stage.name: stage})


def fold(entries: Iterable[Entry | None], state: RunState | None = None) -> RunState:
    """The state after these lines of a journal (`engine.run.journal.read_journal`). Unreadable lines are counted."""
    state = state or RunState()
    for entry in entries:
        state = fold_line(state, entry)
    return state


def fold_line(state: RunState, entry: Entry | None) -> RunState:
    """The state after one line of a journal. Never raises, even if the line is malformed."""
    try:
        if entry is not None:
            return state.apply_entry(entry)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        log.warning("skipped an event of the journal: %r", error)
    return replace(state, skipped_lines=state.skipped_lines + 1)


def _progress_of(step: TrainStep, first: tuple[int, float], now: float) -> Progress:
    """Optimizer steps done, with the rate since the first step of this process."""
    since, started = first
    rate = (step.step - since) / (now - started) if step.step > since and now > started else None
    left = (step.total_steps - step.step) / rate if rate else None
    return Progress(step.step, step.total_steps, "steps", rate, left)


def _interrupted(status: StageStatus) -> StageStatus:
    """A stage that was running when its process died is waiting again."""
    return "waiting" if status == "running" else status
