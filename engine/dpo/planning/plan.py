"""The training plan: how the pairs of a step are split to fit in memory. It is chosen before training, recorded, and
reduced if memory runs out.

The effective batch (`--per-device-train-batch-size` × `--gradient-accumulation-steps`) determines the result and never
changes; how many of its pairs go through the model at once affects only memory and speed. So a checkpoint made under one
plan can be resumed under another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import MemoryExhausted, RestartNeeded
from engine.dpo.planning.process_count import number_of_processes
from engine.run.folder import Run
from engine.storage.documents import read_json_or_none
from engine.storage.files import write_json

PLAN_JSON = f"{layout.CHECKPOINTS_DIR}/plan.json"
"""The reduced plan after memory ran out; it belongs to the checkpoints."""

Reference = Literal["up front", "live"]
GIB = 1 << 30


@dataclass(frozen=True)
class TrainingPlan:
    micro_batch: int
    """Pairs per forward pass; two sequences each."""
    accumulation: int
    """Forward passes of each process per optimizer step."""
    gradient_checkpointing: bool
    """Whether activations are recomputed to save memory."""
    reference: Reference
    """Whether the reference's log-probabilities are computed once before training, or at each step."""
    dtype: str
    """Number format of the base weights and of mixed precision: bfloat16, float16, float32."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Field name → reason for its value."""
    processes: int = 1
    """Number of processes that train together."""

    @property
    def effective_batch(self) -> int:
        return self.processes * self.micro_batch * self.accumulation

    @property
    def in_words(self) -> str:
        processes = f"{self.processes} processes × " if self.processes > 1 else ""
        checkpointing = ", activations recomputed" if self.gradient_checkpointing else ""
        reference = "reference computed once" if self.reference == "up front" else "reference at each step"
        return f"{processes}{self.micro_batch} × {self.accumulation} pairs per step, {self.dtype}{checkpointing}, {reference}"

    def split(self, micro_batch: int) -> TrainingPlan:
        """The same effective batch, split differently. `micro_batch` must divide the pairs of one process."""
        share = self.micro_batch * self.accumulation
        return replace(self, micro_batch=micro_batch, accumulation=share // micro_batch)

    def for_processes(self, processes: int) -> TrainingPlan:
        """The same effective batch for another number of processes, which must divide it; the micro-batch does not grow."""
        share = self.effective_batch // processes
        micro_batch = max(size for size in micro_batches(share) if size <= self.micro_batch)
        return replace(self, processes=processes, micro_batch=micro_batch, accumulation=share // micro_batch)

    def reduce(self, *, may_checkpoint: bool = True) -> TrainingPlan | None:
        """A plan that needs less memory: half the micro-batch or, at 1, recomputed activations. None if there is none."""
        if self.micro_batch > 1:
            half = self.micro_batch // 2
            share = self.micro_batch * self.accumulation
            return self.split(max(size for size in micro_batches(share) if size <= half))
        if not self.gradient_checkpointing and may_checkpoint:
            return replace(self, gradient_checkpointing=True)
        return None

    def applied_to(self, config: Stage3Config) -> Stage3Config:
        """`config` with this plan's settings."""
        return config.model_copy(
            update={
                "per_device_train_batch_size": self.micro_batch,
                # Each process loads all pairs of a step, then takes its share.
                "gradient_accumulation_steps": self.accumulation * self.processes,
                "gradient_checkpointing": self.gradient_checkpointing,
                "cpu_ref_model": self.reference == "up front",
                "dtype": self.dtype,
            }
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "why": dict(self.why)}

    @classmethod
    def from_dict(cls, data: Any) -> TrainingPlan | None:
        """The plan in a record; None if it is missing or damaged."""
        try:
            plan = cls(
                micro_batch=int(data["micro_batch"]),
                accumulation=int(data["accumulation"]),
                gradient_checkpointing=bool(data["gradient_checkpointing"]),
                reference="live" if data["reference"] == "live" else "up front",
                dtype=str(data["dtype"]),
                why=dict(data.get("why", {})),
                processes=int(data.get("processes", 1)),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return plan if min(plan.micro_batch, plan.accumulation, plan.processes) > 0 else None


def effective_batch(config: Stage3Config) -> int:
    """Pairs of one optimizer step."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps


def micro_batches(effective: int) -> list[int]:
    """The divisors of the effective batch, largest first."""
    return [size for size in range(effective, 0, -1) if effective % size == 0]


def plan_as_configured(config: Stage3Config, dtype: str) -> TrainingPlan:
    """The plan without measurements: the configured batch, with gradient checkpointing unless it is disabled."""
    return TrainingPlan(
        micro_batch=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing is not False,
        reference=reference_for(config)[0],
        dtype=dtype,
        why=dict.fromkeys(("micro_batch", "gradient_checkpointing"), "as configured; not measured"),
    )


def reference_for(config: Stage3Config) -> tuple[Reference, str]:
    """When the reference's log-probabilities are computed, and why."""
    if config.cpu_ref_model is not None:
        option = "--cpu-ref-model" if config.cpu_ref_model else "--no-cpu-ref-model"
        return ("up front" if config.cpu_ref_model else "live"), option
    if config.num_train_epochs < 1:
        return (
            "live",
            f"{config.num_train_epochs:g} epochs read only part of the pairs; computing it for all would cost more",
        )
    return "up front", "once per pair costs no more than at each step, and needs no memory in training"


def choose_plan(
    config: Stage3Config,
    dtype: str,
    why_dtype: str,
    needed: Callable[[TrainingPlan], float],
    available: float,
    max_micro_batch: int | None = None,
    processes: int = 1,
) -> TrainingPlan:
    """The first plan that fits: the largest micro-batch without gradient checkpointing, else the largest with it, else the
    smallest plan.

    needed            peak bytes of a plan, by the forecast
    available         available bytes
    max_micro_batch   micro-batch size beyond which there is no gain
    processes         that train together; `needed` and `available` are for one of them
    """
    reference, why_reference = reference_for(config)
    candidates = _candidates(config, reference, dtype, max_micro_batch, processes)
    plan = next((plan for plan in candidates if needed(plan) <= available), candidates[-1])
    larger = candidates[candidates.index(plan) - 1] if plan != candidates[0] else None
    return replace(
        plan,
        why={
            "micro_batch": _why_micro_batch(plan, larger, needed, available),
            "gradient_checkpointing": _why_checkpointing(plan, config, needed, available),
            "reference": why_reference,
            "dtype": why_dtype,
        },
    )


def _candidates(
    config: Stage3Config, reference: Reference, dtype: str, max_micro_batch: int | None, processes: int
) -> list[TrainingPlan]:
    """Plans from the fastest to the smallest, all with the same effective batch."""
    configured, share = config.gradient_checkpointing, effective_batch(config) // processes
    return [
        TrainingPlan(size, share // size, checkpointing, reference, dtype, processes=processes)
        for checkpointing in ((False, True) if configured is None else (configured,))
        for size in micro_batches(share)
        if size == 1 or max_micro_batch is None or size <= max_micro_batch
    ]


def _why_micro_batch(
    plan: TrainingPlan, larger: TrainingPlan | None, needed: Callable[[TrainingPlan], float], available: float
) -> str:
    why = f"needs {needed(plan) / GIB:.1f} of {available / GIB:.1f} GiB"
    if larger is not None and larger.gradient_checkpointing == plan.gradient_checkpointing:
        why += f"; {larger.micro_batch} would need {needed(larger) / GIB:.1f}"
    return why


def _why_checkpointing(
    plan: TrainingPlan, config: Stage3Config, needed: Callable[[TrainingPlan], float], available: float
) -> str:
    if config.gradient_checkpointing is not None:
        return "--gradient-checkpointing" if config.gradient_checkpointing else "--no-gradient-checkpointing"
    if not plan.gradient_checkpointing:
        return "all activations fit in memory, which is faster"
    without = needed(replace(plan.split(1), gradient_checkpointing=False)) / GIB
    return f"keeping all activations would need {without:.1f} of {available / GIB:.1f} GiB, even for one pair at a time"


# -- the current plan ------------------------------------------------------------------------------------------------


def current_plan(run: Run, config: Stage3Config, dtype: str) -> TrainingPlan:
    """The plan that was reduced after memory ran out, else preflight's, else the configured one; for this start's processes."""
    preflight, processes = run.results.preflight, number_of_processes(config)
    for record in (_stored(run).get("plan"), None if preflight is None else preflight.plan):
        plan = TrainingPlan.from_dict(record)
        if plan is not None and plan.effective_batch == effective_batch(config):
            return plan if plan.processes == processes else plan.for_processes(processes)
    return plan_as_configured(config, dtype).for_processes(processes)


def oom_history(run: Run) -> list[dict[str, Any]]:
    """Every time memory ran out in this training: the plan before and after, the step, and the error."""
    history = _stored(run).get("lowered")
    return list(history) if isinstance(history, list) else []


def reduce_after_oom(
    run: Run, config: Stage3Config, plan: TrainingPlan, *, step: int, error: str
) -> RestartNeeded | MemoryExhausted:
    """Save a reduced plan for the next process, or return MemoryExhausted if there is none.

    step    the last completed optimizer step
    error   the allocator's message
    """
    first_line = error.strip().splitlines()[0] if error.strip() else "The allocation failed."
    lower = plan.reduce(may_checkpoint=config.gradient_checkpointing is not False)
    summary = f"Memory ran out after step {step}, with {plan.in_words}"
    if lower is None:
        return MemoryExhausted(f"{summary}, and no smaller plan is left.", first_line, memory_advice(config))
    record = {"from": plan.as_dict(), "to": lower.as_dict(), "step": step, "error": first_line, "time": time.time()}
    write_json(run / PLAN_JSON, {"plan": lower.as_dict(), "lowered": [*oom_history(run), record]})
    return RestartNeeded(
        f"{summary}.",
        first_line,
        f"Training continues in a fresh process from the last checkpoint, with {lower.in_words}: still "
        f"{lower.effective_batch} pairs per step.",
    )


def memory_advice(config: Stage3Config) -> str:
    """Options that save memory beyond any plan."""
    same = ["--gradient-checkpointing"] if config.gradient_checkpointing is False else []
    if config.cpu_ref_model is False:
        same.append("--cpu-ref-model")
    other = [f"--max-length {max(config.max_length // 2, 16)} (now {config.max_length})"]
    if not config.load_in_4bit:
        other.append("--load-in-4bit")
    resumes = f"Use {' or '.join(same)}: training continues from its last checkpoint. Or use" if same else "Use"
    return (
        f"{resumes} {' or '.join(other)}: training starts over on the same pairs. A smaller base model also needs less "
        "memory, but requires new pairs."
    )


def _stored(run: Run) -> dict[str, Any]:
    return read_json_or_none(run / PLAN_JSON, dict[str, Any]) or {}
