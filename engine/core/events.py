"""The events of a run: one frozen dataclass per kind.

Stages yield them, a driver appends them to `logs/events.jsonl`, and every screen shows a fold of them
(`engine.run.state`). The names of the kinds are a contract; fields may be added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

from engine.core.stage_table import STAGES
from engine.core.typed import validated

Outcome = Literal["done", "skipped", "failed", "refused", "stopped"]
CheckStatus = Literal["ok", "warning", "failed", "skipped"]
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class Event:
    """Base class of all events; never emitted itself."""

    @classmethod
    def kind(cls) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind(), **asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """A process locked the run folder, and starts or continues the run."""

    run_dir: str
    version: str
    pid: int
    host: str
    device: str = ""
    stages: tuple[str, ...] = ()
    """The stages of this process, in order."""


@dataclass(frozen=True)
class StageStarted(Event):
    stage: str
    sentence: str = ""
    """What the stage is about to do."""


@dataclass(frozen=True)
class StageFinished(Event):
    stage: str
    outcome: Outcome
    summary: str = ""
    reused: bool = False
    """An earlier process finished the stage, and nothing that it depends on has changed."""
    what: str = ""
    why: str = ""
    what_to_do: str = ""
    exit_code: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The stage's result as plain data, as in `run.json`, for screens that show more than a sentence."""


@dataclass(frozen=True)
class StageStale(Event):
    """A stage's result is no longer valid. Its files were set aside, and the stage will run again."""

    stage: str
    why: str = ""


@dataclass(frozen=True)
class Check(Event):
    """One row of a stage's table: a tool and its version, a gate figure and its threshold, a property of an adapter."""

    name: str
    status: CheckStatus
    detail: str = ""
    stage: str = ""
    """Set by the pipeline, like every `stage` below."""


@dataclass(frozen=True)
class Progress(Event):
    done: int
    total: int
    unit: str
    rate: float | None = None
    """Units per second in this process."""
    seconds_left: float | None = None
    note: str = ""
    """A few words beside the bar: usable share, tokens per second."""
    stage: str = ""


@dataclass(frozen=True)
class Forecast(Event):
    """Preflight's forecast for the long stages, from its small-scale measurements."""

    seconds: Mapping[str, float]
    """Duration by stage."""
    peak_bytes: Mapping[str, float]
    """Peak memory by stage: of the GPU, including CUDA's own share, or of this process on the CPU."""
    on_gpu: bool = False
    """Whether `peak_bytes` is a GPU's memory."""
    gpu: int | None = None
    """The driver's index of that GPU (`GpuReading.index`); None if unknown."""
    disk_bytes: float = 0.0


@dataclass(frozen=True)
class PilotDone(Event):
    """Preflight made pairs from the first prompts: estimates for the full set, and some of the pairs to read."""

    pairs: int
    figures: tuple[Mapping[str, Any], ...] = ()
    """Gate figures, each with name, successes, n, share, low, high (95 %), threshold, bound and hopeless."""
    shown: tuple[Mapping[str, Any], ...] = ()
    """Some records of `preflight/pairs.jsonl`, with their texts cut short."""


@dataclass(frozen=True)
class PairMade(Event):
    """A prompt yielded a preference pair, which is on disk."""

    id: str
    prompt: str
    base_response: str
    revised_response: str
    critic_notes: str = ""
    principle_ids: tuple[str, ...] = ()
    attempts: int = 1
    base_score: float | None = None
    revised_score: float | None = None


@dataclass(frozen=True)
class PairFailed(Event):
    """A prompt yielded no pair. Its record, with the reason, is on disk."""

    id: str
    prompt: str
    reason: str
    base_response: str = ""
    revised_response: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class TrainStep(Event):
    """One optimizer step. Rewards are beta times the log-ratio to the reference, in nats (Rafailov et al. 2023, eq. 5)."""

    step: int
    total_steps: int
    loss: float
    reward_chosen: float
    reward_rejected: float
    margin: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    epoch: float = 0.0


@dataclass(frozen=True)
class TrialStarted(Event):
    """A trial of a sweep begins or continues, in its own folder."""

    name: str
    number: int
    """Counted from 1."""
    total: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options in which the trials differ."""
    run_dir: str = ""


@dataclass(frozen=True)
class TrialStep(Event):
    """One optimizer step of a trial. The trial's own journal has the full event."""

    trial: str
    step: int
    total_steps: int
    loss: float
    margin: float
    accuracy: float


@dataclass(frozen=True)
class TrialFinished(Event):
    name: str
    outcome: Outcome
    summary: str = ""
    verdict: str = ""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    """As in `EvalDone`, on the half of the held-out pairs that the sweep chooses on."""
    reused: bool = False
    final_loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class EvalDone(Event):
    """Stage 2 was compared with Stage 3 on held-out prompts. The full report is `evaluation/report.json`."""

    verdict: str
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    samples: tuple[Mapping[str, str], ...] = ()
    """`{"prompt", "stage2", "stage3"}` of a few held-out prompts."""
    rule: str = ""
    """The rule that decided the verdict (`engine.dpo.evaluation.verdict`); empty in journals of earlier versions."""


@dataclass(frozen=True)
class CheckpointSaved(Event):
    step: int
    path: str
    bytes: int = 0


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. Fields that the driver does not report are None."""

    index: int
    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True)
class Telemetry(Event):
    gpus: tuple[GpuReading, ...]
    rss_bytes: int
    """Resident memory of this process."""
    host_used_bytes: int
    host_total_bytes: int
    cpu_percent: float = 0.0
    """CPU use of the whole machine, 0 to 100."""
    note: str = ""
    """Why no GPU could be read; empty if one was."""


@dataclass(frozen=True)
class ServerReading:
    """One inference server at one moment."""

    url: str
    state: Literal["in", "resting", "out"] = "in"
    """in: receives requests; resting: paused after a 429; out: left out after a failure."""
    why: str = ""
    """Why it receives no requests."""
    asked_again_in: float = 0.0
    """Seconds until it is tried again; 0 if it is in."""
    in_flight: int = 0
    answered: int = 0
    running: float | None = None
    """Requests in progress, from the server's /metrics; None if it has none."""
    waiting: float | None = None
    """Requests in its queue, from the same source."""
    cache: float | None = None
    """Share of its KV cache in use, 0 to 1, from the same source."""


@dataclass(frozen=True)
class Servers(Event):
    """The servers of one role: emitted when one is left out or comes back, and every few seconds if they report their load."""

    role: str
    """server (the policy's), critic or judge."""
    servers: tuple[ServerReading, ...] = ()


@dataclass(frozen=True)
class Stalled(Event):
    """A stage has been silent far longer than usual (`engine.run.watchdog`)."""

    stage: str
    seconds: float
    """Time since the stage's last event; 0 when the stage continues."""


@dataclass(frozen=True)
class Message(Event):
    level: Level
    text: str
    stage: str = ""


@dataclass(frozen=True)
class RunFinished(Event):
    exit_code: int
    summary: str = ""


EventSink = Callable[[Event], None]
"""Takes an event from code that cannot yield it."""


def discard_event(event: Event) -> None:
    """An `EventSink` that drops every event."""


KINDS: dict[str, type[Event]] = {cls.kind(): cls for cls in Event.__subclasses__()}


Returned = TypeVar("Returned")


def with_stage(running: Generator[Event, None, Returned], stage: str) -> Generator[Event, None, Returned]:
    """Set `stage` on each event that has this field. Exceptions thrown into the generator reach the stage."""
    try:
        event = next(running)
        while True:
            try:
                yield _set_stage(event, stage)
            except GeneratorExit:
                running.close()
                raise
            except BaseException as error:
                event = running.throw(error)
            else:
                event = next(running)
    except StopIteration as end:
        return cast(Returned, end.value)


def _set_stage(event: Event, stage: str) -> Event:
    return replace(event, stage=stage) if getattr(event, "stage", None) == "" else event  # type: ignore[call-arg]


def event_from_dict(data: Mapping[str, Any]) -> Event | None:
    """Rebuild an event from a line of the journal; None for an unknown kind.

    Unknown fields are dropped (a newer version wrote them). Raises ValueError for a missing field, a field of a wrong type, and
    a stage that this version does not have.
    """
    cls = KINDS.get(str(data.get("kind")))
    if cls is None:
        return None
    event = validated(cls, {name: data[name] for name in _FIELDS[cls.kind()] if name in data})
    stage = getattr(event, "stage", None)
    if stage is not None and stage not in STAGES and not (stage == "" and cls in _MAY_LACK_STAGE):
        raise ValueError(f"unknown stage {stage[:40]!a}")
    return event


_FIELDS = {kind: tuple(one.name for one in fields(cls)) for kind, cls in KINDS.items()}
_MAY_LACK_STAGE = (Message, Stalled)
"""Kinds that may belong to the run as a whole."""
