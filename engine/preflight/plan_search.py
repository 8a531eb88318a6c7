"""Find a training plan that fits this machine: first by the forecast's formula, then by a rehearsal on the longest pair."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import MemoryExhausted, PreconditionError, RestartNeeded
from engine.core.events import Event, Message
from engine.dpo.planning import forecast as formula
from engine.dpo.planning.forecast import Machine, Shape
from engine.dpo.planning.plan import TrainingPlan, choose_plan
from engine.dpo.planning.process_count import number_of_processes
from engine.machine.memory import free_memory
from engine.models.loading import gpus_for_base
from engine.preflight.rehearsal import Rehearsal, RehearsalResult, train_and_resume

if TYPE_CHECKING:
    from engine.dpo.training.dataset import Row


MEMORY_FRACTION = {"cuda": 0.92, "cpu": 0.6}
"""Fraction of the available memory that a plan may use: torch's allocator leaves gaps, and on the CPU the kernel kills a
process whose memory runs out."""
MAX_FORWARD_TOKENS = {"cpu": 4096}
"""Tokens in one forward pass: more would cost padding, and gain nothing on a few cores."""
TERMS_THAT_SCALE = ("activations", "attention", "head", "workspace")
GIB = 1 << 30


@dataclass(frozen=True)
class PlanInputs:
    """The inputs for choosing a plan."""

    config: Stage3Config
    """The options, with the chosen number format."""
    shape: Shape
    machine: Machine
    why_dtype: str

    def needed(self, plan: TrainingPlan, scale: float = 1.0, **other: Any) -> float:
        """Peak bytes of the training. `other`: options to override."""
        config = self.config.model_copy(update=other)
        terms = self.terms(plan, config.max_length, config.load_in_4bit)
        return sum(size * (scale if name in TERMS_THAT_SCALE else 1.0) for name, size in terms.items())

    def terms(self, plan: TrainingPlan, max_length: int, quantization_arguments: bool) -> dict[str, int]:
        return formula.training_memory(
            self.shape,
            plan,
            max_length=max_length,
            context=self.machine.context,
            quantization_arguments=quantization_arguments,
            slack=self.machine.slack,
            head=formula.head_method(self.config.head, self.machine.device_type),
            device_type=self.machine.device_type,
            shards=plan.processes if self.config.sharding == "fsdp" else 1,
            optim=self.config.optim,
        )

    def generation(self, rows: int, **other: Any) -> dict[str, int]:
        config = self.config.model_copy(update=other)
        return formula.generation_memory(
            self.shape,
            config.dtype,
            rows=rows,
            longest=config.max_prompt_tokens + config.max_new_tokens,
            context=self.machine.context,
            quantization_arguments=config.load_in_4bit,
            gpus=gpus_for_base(config),
        )

    def choose(self, scale: float = 1.0) -> TrainingPlan:
        config, device = self.config, self.machine.device_type
        tokens, processes = MAX_FORWARD_TOKENS.get(device), number_of_processes(config)
        room = self.machine.room / (processes if device == "cpu" else 1)  # each process has a GPU of its own
        return choose_plan(
            config,
            config.dtype,
            self.why_dtype,
            lambda plan: self.needed(plan, scale),
            room * MEMORY_FRACTION.get(device, 0.9),
            None if tokens is None else tokens // (2 * config.max_length),
            processes,
        )


def require_memory(inputs: PlanInputs) -> None:
    """Raises PreconditionError if not even the smallest plan, or one conversation at a time, fits."""
    config, machine = inputs.config, inputs.machine
    # A GPU raises when memory runs out, so the rehearsal decides close cases. On a CPU the process would be killed.
    most = machine.total if machine.device_type == "cuda" else machine.room
    plan = inputs.choose()
    if (needed := inputs.needed(plan)) > most:
        raise too_small_error(inputs, plan, f"The training needs {needed / GIB:.1f} GiB at its peak", most)
    terms = inputs.generation(1)
    if (needed := sum(terms.values())) > most and config.server_url is None:
        fewer = config.max_new_tokens // 2
        raise PreconditionError(
            f"Generating pairs needs {needed / GIB:.1f} GiB, but only {most / GIB:.1f} GiB are available.",
            _listed(terms),
            f"Use --max-new-tokens {fewer}, --load-in-4bit, a smaller --base-model-id, or --server-url.",
        )


def too_small_error(inputs: PlanInputs, plan: TrainingPlan, what: str, room: float) -> PreconditionError:
    """The error, with the memory that each alternative would need."""
    config = inputs.config
    remedies: dict[str, float] = {}
    if not plan.gradient_checkpointing:
        plan = replace(plan, gradient_checkpointing=True)
        remedies["--gradient-checkpointing"] = inputs.needed(plan)
    if plan.reference == "live":
        plan = replace(plan, reference="up front")
        remedies["--cpu-ref-model"] = inputs.needed(plan)
    remedies[f"--max-length {config.max_length // 2}"] = inputs.needed(plan, max_length=config.max_length // 2)
    if plan.processes > 1 and config.sharding == "ddp" and not config.load_in_4bit:
        sharded = replace(inputs, config=config.model_copy(update={"sharding": "fsdp"}))
        remedies["--sharding fsdp"] = sharded.needed(plan)
    if inputs.machine.device_type == "cuda" and not config.load_in_4bit:
        remedies["--load-in-4bit"] = inputs.needed(plan, load_in_4bit=True)
    listed = ", ".join(f"{option} ({size / GIB:.1f} GiB)" for option, size in remedies.items())
    return PreconditionError(
        f"{what}, but only {room / GIB:.1f} GiB are available.",
        _listed(inputs.terms(plan, config.max_length, config.load_in_4bit)),
        f"Use {listed}, or a smaller --base-model-id.",
    )


def _listed(terms: Mapping[str, int]) -> str:
    return "In GiB: " + ", ".join(f"{name} {size / GIB:.1f}" for name, size in terms.items() if size) + "."


def fitting_plan(
    inputs: PlanInputs, rehearsal: Rehearsal, row: Row
) -> Generator[Event, None, tuple[TrainingPlan, RehearsalResult]]:
    """The plan that the forecast chooses, tried on the longest pair: reduced if it does not fit, and increased once if the
    measurement leaves room.
    """
    config, machine = inputs.config, inputs.machine
    plan: TrainingPlan | None = inputs.choose()
    best: tuple[TrainingPlan, RehearsalResult] | None = None
    while plan is not None:
        try:
            tried = yield from train_and_resume(rehearsal, row, plan, plan.processes // config.num_machines)
        except (RestartNeeded, MemoryExhausted) as error:
            reason = error.why
            yield Message("warning", f"Memory ran out on the longest pair with {plan.in_words}: {reason}")
            lower = plan.reduce(may_checkpoint=config.gradient_checkpointing is None)
            if best is not None:
                break
            if lower is None:
                raise too_small_error(
                    inputs, plan, f"Training on a single pair needs more memory ({reason})", machine.room
                ) from None
            plan = replace(lower, why={**plan.why, "micro_batch": f"{plan.micro_batch} was tried and did not fit"})
            free_memory()
            continue
        larger = None
        if best is None and machine.device_type == "cuda":
            larger = inputs.choose(_scale(inputs, plan, tried.peak_bytes))
            if larger.gradient_checkpointing > plan.gradient_checkpointing or (
                larger.gradient_checkpointing == plan.gradient_checkpointing and larger.micro_batch <= plan.micro_batch
            ):
                larger = None
        best, plan = (plan, tried), larger
    assert best is not None
    return best


def _scale(inputs: PlanInputs, plan: TrainingPlan, measured: int) -> float:
    """Measured activation memory relative to the formula's, without the CUDA context."""
    config = inputs.config
    terms = inputs.terms(plan, config.max_length, config.load_in_4bit)
    scaling = sum(terms[name] for name in TERMS_THAT_SCALE)
    fixed = sum(terms.values()) - scaling - terms["context"]
    return max((measured - fixed) / scaling, 0.1)
