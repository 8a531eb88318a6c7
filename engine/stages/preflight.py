"""Stage 6: the long run in small, on the same code: a pair, training steps on the longest pair, a checkpoint, a resume, an
archive. It chooses the number format and the training's plan, and forecasts the whole from what it measured.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from engine.core import events
from engine.core.config import Stage3Config
from engine.core.errors import DamagedState, MemoryExhausted, PreconditionError, RestartNeeded
from engine.core.events import Check, CheckpointSaved, Event, Message, TrainStep
from engine.core.layout import CHECKPOINTS_DIR
from engine.dpo.planning import forecast as formula
from engine.dpo.planning.forecast import Forecast, Machine, Measurements, Shape, forecast, machine_of
from engine.dpo.planning.plan import TrainingPlan, choose_plan, effective_batch
from engine.machine.device import resolve_device
from engine.machine.memory import MemoryPeak, free_memory
from engine.machine.telemetry import Gpus, gpu_of_cuda
from engine.models.adapters.source import adapter_folder
from engine.models.backend import Backend, load_backend
from engine.models.chat_template import conversation_ids
from engine.models.downloads import verify_base
from engine.models.generation.sampling import SamplingSettings
from engine.models.loading import hub_arguments, load_base, load_policy, load_tokenizer
from engine.models.number_format import choose_dtype, overflow_in_float16
from engine.pairs.assessment.training_set import preference_row
from engine.pairs.data.record import Pair, PairRecord
from engine.pairs.generation.critique_revision import make_records
from engine.pairs.generation.prompts import Prompt, load_prompts
from engine.pairs.generation.recipe import GenerationSettings
from engine.run.context import Context
from engine.run.folder import Run
from engine.security.sanitize import visible_line
from engine.stages.base import StageResult, StageRun
from engine.storage.jsonl import dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.dpo.training.dataset import Row
    from engine.dpo.training.trainer import Trained

OUTPUTS: tuple[str, ...] = ("preflight",)

NAME = "preflight"
PROBE_TOKENS = 8
"""Length of the replies of the batch that is timed."""
STEPS = 3
"""Two before the interruption at the latest, and one for the resume."""
PROMPTS_MEASURED = 200
"""Prompts that are measured to find one that fits."""
GIB = 1 << 30
MEMORY_FRACTION = {"cuda": 0.92, "cpu": 0.6}
"""Of the memory that there is, what a plan may need: torch's allocator leaves gaps, and on the CPU nothing raises when memory
runs out: the process is killed."""
MAX_FORWARD_TOKENS = {"cpu": 4096}
"""Of a forward pass: more of them at once cost padding and gain nothing on a few cores."""
DTYPE_PROMPTS = 8
TERMS_THAT_SCALE = ("activations", "attention", "head", "workspace")


def depends_on(context: Context) -> dict[str, Any]:
    fields = (
        "base_model_id base_model_revision dataset dataset_revision split num_examples max_new_tokens max_length "
        "generation_batch_size rounds device server_url server_model dtype load_in_4bit gradient_checkpointing cpu_ref_model "
        "num_train_epochs save_total_limit"
    )
    return {
        **{field: getattr(context.config, field) for field in fields.split()},
        "effective_batch": effective_batch(context.config),
        "adapter": context.run.result("adapter").get("tensors_sha256"),
    }


@dataclass(frozen=True)
class PlanInputs:
    """What the choice of a plan stands on."""

    context: Context
    """Its configuration has the number format that was chosen."""
    shape: Shape
    machine: Machine
    why_dtype: str

    def needed(self, plan: TrainingPlan, scale: float = 1.0, **other: Any) -> float:
        """Bytes at the peak of the training. `other`: options that are to be otherwise than configured."""
        config = self.context.config.model_copy(update=other)
        terms = self.terms(plan, config.max_length, config.load_in_4bit)
        return sum(size * (scale if name in TERMS_THAT_SCALE else 1.0) for name, size in terms.items())

    def terms(self, plan: TrainingPlan, max_length: int, in_4bit: bool) -> dict[str, int]:
        return formula.training_memory(
            self.shape,
            plan,
            max_length=max_length,
            context=self.machine.context,
            in_4bit=in_4bit,
            slack=self.machine.slack,
        )

    def generation(self, rows: int, **other: Any) -> dict[str, int]:
        config = self.context.config.model_copy(update=other)
        return formula.generation_memory(
            self.shape,
            config.dtype,
            rows=rows,
            longest=config.max_prompt_tokens + config.max_new_tokens,
            context=self.machine.context,
            in_4bit=config.load_in_4bit,
        )

    def choose(self, scale: float = 1.0) -> TrainingPlan:
        config, device = self.context.config, self.machine.device_type
        tokens = MAX_FORWARD_TOKENS.get(device)
        return choose_plan(
            config,
            config.dtype,
            self.why_dtype,
            lambda plan: self.needed(plan, scale),
            self.machine.room * MEMORY_FRACTION.get(device, 0.9),
            None if tokens is None else tokens // (2 * config.max_length),
        )


def run(context: Context) -> StageRun:
    scratch = context.run / NAME
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        plan, measured, grounds = yield from _short_run(context, Run(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    config = context.config
    whole = forecast(
        measured,
        num_examples=config.num_examples,
        rounds=config.rounds,
        max_new_tokens=config.max_new_tokens,
        epochs=config.num_train_epochs,
        save_total_limit=config.save_total_limit,
        plan=plan,
    )
    yield from _told(whole, grounds.machine)
    yield _forecast_event(whole, grounds.machine, resolve_device(config).index or 0)
    _require_room(context, whole)
    minutes = (whole.seconds_pairs + whole.seconds_training) / 60
    return StageResult(
        f"all steps worked; the whole takes about {minutes:.0f} min"
        if minutes >= 1
        else f"all steps worked; the whole takes about {minutes * 60:.0f} s",
        {
            "forecast": whole.as_dict(),
            "measured": measured.__dict__,
            "dtype": plan.dtype,
            "plan": plan.as_dict(),
            "memory": grounds.terms(plan, config.max_length, config.load_in_4bit),
            "machine": grounds.machine.__dict__,
        },
    )


def _short_run(context: Context, scratch: Run) -> Generator[Event, None, tuple[TrainingPlan, Measurements, PlanInputs]]:
    prompts = load_prompts(context.config, context.token_text)
    if not prompts:
        raise PreconditionError(
            f"{context.config.dataset} ({context.config.split}) has no prompts.", "", "Give another --split."
        )
    grounds = yield from _grounds(context, prompts)
    config, device = grounds.context.config, resolve_device(context.config)
    _require_memory(grounds)

    peak_of_pairs, recipe = MemoryPeak(device), GenerationSettings.of(config)
    backend = load_backend(config, adapter_folder(context), context.stop, context.token_text)
    for note in backend.check(recipe.sampling):
        yield Message("warning", note, NAME)
    prompts = _short_first(prompts, backend, config.max_length)
    started = time.monotonic()
    record = make_records(prompts[:1], backend, recipe)[0]
    yield Check(NAME, "one pair", "ok", f"{time.monotonic() - started:.1f} s, {backend.tokens} tokens: {record.status}")
    reply_tokens = backend.tokens / max(1 + 2 * record.attempts, 1)
    batch_size = backend.batch_size(config.max_prompt_tokens + recipe.beside_the_prompt(backend))
    size = min(batch_size, len(prompts))
    prefill, decode = _time_a_batch(backend, prompts[:size])
    yield Check(NAME, "a batch", "ok", f"{size} prompts: {prefill:.2f} s to read, {size / decode:.0f} tokens/s")
    pair_tokens = backend.length(prompts[0].messages) + reply_tokens
    tokenizer = load_tokenizer(config, context.token_text)
    row = longest_row(record, tokenizer, config.max_length)
    bytes_of_pairs = peak_of_pairs.bytes()
    del backend
    free_memory()
    context.stop.raise_if_requested()

    plan, tried = yield from _fitting_plan(grounds, scratch, row)
    yield Check(NAME, "plan", "ok", f"{plan.in_words}: {plan.why.get('micro_batch', '')}")
    yield from _archive(context, scratch)
    measured = Measurements(
        batch_size=batch_size,
        reply_tokens=reply_tokens,
        prefill_seconds=prefill,
        decode_seconds=decode,
        record_bytes=len(dumps(record.as_dict())),
        step_seconds=tried.step_seconds,
        longest_tokens=config.max_length,
        pair_tokens=pair_tokens,
        checkpoint_bytes=tried.checkpoint_bytes,
        peak_bytes=tried.peak_bytes,
        peak_bytes_pairs=bytes_of_pairs,
    )
    return plan, measured, grounds


def _grounds(context: Context, prompts: list[Prompt]) -> Generator[Event, None, PlanInputs]:
    """Choose the number format, and look at the model's shape and at the machine."""
    from transformers import AutoConfig

    config, token = context.config, context.token_text

    def overflow() -> str:
        half = config.model_copy(update={"dtype": "float16"})
        tokenizer = load_tokenizer(half, token)
        texts = [conversation_ids(tokenizer, prompt.messages, reply_wanted=True) for prompt in prompts[:DTYPE_PROMPTS]]
        policy = load_policy(load_base(half, token), adapter_folder(context), trainable=True)
        try:
            return overflow_in_float16(policy, [ids[: config.max_length] for ids in texts])
        finally:
            del policy
            free_memory()

    yield from _check_download(config)
    dtype, why = choose_dtype(config, overflow)
    yield Check(NAME, "number format", "ok", f"{dtype} on {resolve_device(config)}: {why}")
    model_config = AutoConfig.from_pretrained(config.base_model_id, **hub_arguments(config, token))
    machine = machine_of(resolve_device(config))
    where = "the GPU" if machine.device_type == "cuda" else "this computer"
    have = f"{machine.room / GIB:.1f} of {machine.total / GIB:.1f} GiB of {where} may be filled"
    yield Check(NAME, "memory", "ok", have)
    yield from _held_by_others(machine.device_type)
    chosen = replace(context, config=config.model_copy(update={"dtype": dtype}))
    return PlanInputs(chosen, Shape.of(model_config, context.run.result("adapter")), machine, why)


def _check_download(config: Stage3Config) -> Iterator[Check]:
    """Raises DamagedState where a file of the base model in the Hub's cache is not what its name says."""
    found = verify_base(config)
    if found.damaged:
        names = ", ".join(str(path) for path in found.damaged)
        yield Check(NAME, "download", "failed", visible_line(f"damaged: {names}", 400))
        raise DamagedState(
            f"{len(found.damaged)} of {found.files} files of {config.base_model_id} in the Hub's cache are damaged.",
            f"Their bytes are not those that their names are the hash of: {names}.",
            f"Remove them (rm {shlex.join(map(str, found.damaged))}), then start again: they are downloaded anew.",
        )
    if found.files:
        yield Check(
            NAME, "download", "ok", f"{found.files} files, {found.bytes / GIB:.1f} GiB, each with the hash of its name"
        )


def _held_by_others(device_type: str) -> Iterator[Check]:
    """Who else has memory of the GPUs, so that a person may end it; nobody else does."""
    if device_type != "cuda":
        return
    gpus = Gpus()
    for gpu in gpus.read():
        if holders := gpus.held_by_others(gpu.index):
            held = f"GPU {gpu.index}: {', '.join(map(str, holders))}"
            yield Check(NAME, "memory held by others", "warning", visible_line(held))


def _require_memory(grounds: PlanInputs) -> None:
    """Raises PreconditionError where not even the smallest plan, or one conversation at a time, can fit."""
    config, machine = grounds.context.config, grounds.machine
    # A GPU says when memory runs out, so there the trial decides on what is close; a computer kills the process.
    most = machine.total if machine.device_type == "cuda" else machine.room
    plan = grounds.choose()
    if (needed := grounds.needed(plan)) > most:
        raise _too_small(grounds, plan, f"The training needs {needed / GIB:.1f} GiB at its peak", most)
    terms = grounds.generation(1)
    if (needed := sum(terms.values())) > most and config.server_url is None:
        fewer = config.max_new_tokens // 2
        raise PreconditionError(
            f"Making pairs needs {needed / GIB:.1f} GiB, and there are {most / GIB:.1f}.",
            _listed(terms),
            f"Use --max-new-tokens {fewer}, --load-in-4bit, a smaller --base-model-id, or --server-url.",
        )


def _too_small(grounds: PlanInputs, plan: TrainingPlan, what: str, room: float) -> PreconditionError:
    """The refusal, with what each way out would need."""
    config = grounds.context.config
    ways: dict[str, float] = {}
    if not plan.gradient_checkpointing:
        plan = replace(plan, gradient_checkpointing=True)
        ways["--gradient-checkpointing"] = grounds.needed(plan)
    if plan.reference == "live":
        plan = replace(plan, reference="up front")
        ways["--cpu-ref-model"] = grounds.needed(plan)
    ways[f"--max-length {config.max_length // 2}"] = grounds.needed(plan, max_length=config.max_length // 2)
    if grounds.machine.device_type == "cuda" and not config.load_in_4bit:
        ways["--load-in-4bit"] = grounds.needed(plan, load_in_4bit=True)
    told = ", ".join(f"{way} ({size / GIB:.1f} GiB)" for way, size in ways.items())
    return PreconditionError(
        f"{what}, and there are {room / GIB:.1f}.",
        _listed(grounds.terms(plan, config.max_length, config.load_in_4bit)),
        f"Use {told}, or a smaller --base-model-id.",
    )


def _listed(terms: Mapping[str, int]) -> str:
    return "Its parts, in GiB: " + ", ".join(f"{name} {size / GIB:.1f}" for name, size in terms.items() if size) + "."


@dataclass(frozen=True)
class TrialRun:
    """What training steps on the longest pair took."""

    step_seconds: float
    """Of one pair."""
    checkpoint_bytes: int
    peak_bytes: int


def _fitting_plan(grounds: PlanInputs, scratch: Run, row: Row) -> Generator[Event, None, tuple[TrainingPlan, TrialRun]]:
    """The plan that the forecast chooses, tried on the longest pair: lowered where it does not fit, and raised once where
    what was measured says that more would.
    """
    config, machine = grounds.context.config, grounds.machine
    plan: TrainingPlan | None = grounds.choose()
    best: tuple[TrainingPlan, TrialRun] | None = None
    while plan is not None:
        try:
            tried = yield from _train_and_resume(grounds.context, scratch, row, plan)
        except (RestartNeeded, MemoryExhausted) as error:
            said = error.why
            yield Message("warning", f"On the longest pair memory ran out at {plan.in_words}: {said}", NAME)
            lower = plan.reduce(may_checkpoint=config.gradient_checkpointing is None)
            if best is not None:
                break
            if lower is None:
                raise _too_small(
                    grounds, plan, f"The training of one pair does not fit ({said})", machine.room
                ) from None
            plan = replace(lower, why={**plan.why, "micro_batch": f"{plan.micro_batch} was tried, and did not fit"})
            free_memory()
            continue
        larger = None
        if best is None and machine.device_type == "cuda":
            larger = grounds.choose(_scale(grounds, plan, tried.peak_bytes))
            if larger.gradient_checkpointing > plan.gradient_checkpointing or (
                larger.gradient_checkpointing == plan.gradient_checkpointing and larger.micro_batch <= plan.micro_batch
            ):
                larger = None
        best, plan = (plan, tried), larger
    assert best is not None
    return best


def _scale(grounds: PlanInputs, plan: TrainingPlan, measured: int) -> float:
    """How many times what the formula says the activations really take. Measured without the CUDA context."""
    config = grounds.context.config
    terms = grounds.terms(plan, config.max_length, config.load_in_4bit)
    growing = sum(terms[name] for name in TERMS_THAT_SCALE)
    fixed = sum(terms.values()) - growing - terms["context"]
    return max((measured - fixed) / growing, 0.1)


def _short_first(prompts: list[Prompt], backend: Backend, max_length: int) -> list[Prompt]:
    """The prompts, the first one that leaves half of `--max-length` to the replies in front; else the shortest."""
    lengths = [backend.length(prompt.messages) for prompt in prompts[:PROMPTS_MEASURED]]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length // 2]
    first = fitting[0] if fitting else lengths.index(min(lengths))
    return [prompts[first], *prompts[:first], *prompts[first + 1 :]]


def longest_row(record: PairRecord, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    """The pair, its words repeated until prompt and reply fill `max_length` tokens, or nearly so."""
    from engine.dpo.training.dataset import measure_lengths

    pool = (record.revised_response or record.base_response or "word").split()

    def row(words: int) -> Row:
        reply = [pool[i % len(pool)] for i in range(words)]
        made = preference_row(
            Pair(
                id=record.id,
                prompt=record.prompt,
                messages=record.messages,
                base_response=" ".join(reversed(reply)) + ".",
                revised_response=" ".join(reply) + ".",
            )
        )
        return cast("Row", made)

    low, high = 1, max_length
    while low < high:  # the largest number of words that fits
        middle = (low + high + 1) // 2
        if measure_lengths([row(middle)], tokenizer)[0] <= max_length:
            low = middle
        else:
            high = middle - 1
    return row(low)


def _time_a_batch(backend: Backend, prompts: list[Prompt]) -> tuple[float, float]:
    """(seconds to read the prompts, seconds per further token), of a batch."""
    conversations = [prompt.messages for prompt in prompts]
    seeds = list(range(len(prompts)))

    def ask(tokens: int) -> None:
        backend.clear_cache()  # what was read is read again: its time is wanted
        backend.reply(conversations, SamplingSettings(tokens), seeds)

    ask(1)  # the first batch of a shape pays for more than itself
    one, many = (_seconds(lambda n=n: ask(n)) for n in (1, 1 + PROBE_TOKENS))
    decode = max((many - one) / PROBE_TOKENS, 1e-4)
    return one, decode


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _train_and_resume(context: Context, scratch: Run, row: Row, plan: TrainingPlan) -> Generator[Event, None, TrialRun]:
    """Training steps under `plan`, interrupted after the first checkpoint, then gone on with.

    Raises RestartNeeded or MemoryExhausted where they do not fit; whatever they leave in `scratch` is not for use.
    """
    from engine.dpo.training.trainer import save_adapter, train

    shutil.rmtree(scratch / CHECKPOINTS_DIR, ignore_errors=True)
    small = context.config.model_copy(update={"output_dir": scratch.folder, "save_steps": 1, "report_to": "none"})
    short = Context(config=small, run=scratch, stop=context.stop, token=context.token)
    for stage in ("workspace", "adapter"):
        scratch.record_stage(stage, status="done", result=context.run.result(stage))
    rows, one_pass = [row] * plan.micro_batch, replace(plan, accumulation=1)
    steps = _Steps()
    first = train(short, rows, max_steps=STEPS, plan=one_pass)
    checkpoint_bytes = steps.until_checkpoint(first)
    first.close()  # as an interruption would end it: the step under way is finished, and saved
    yield Check(NAME, "training step", "ok", f"on {plan.micro_batch} × {small.max_length} tokens, loss starts at ln 2")
    yield Check(NAME, "checkpoint", "ok", f"{checkpoint_bytes / 1e6:.1f} MB")
    free_memory()
    trained = yield from steps.quietly(train(short, rows, max_steps=STEPS, plan=one_pass))
    if trained.resumed_from is None:
        raise DamagedState(
            "The run in small did not go on from its checkpoint.",
            "A long run that is interrupted would begin anew.",
            "Look at logs/run.log; then start again.",
        )
    yield Check(NAME, "resume", "ok", f"went on from step {trained.resumed_from}")
    save_adapter(trained, scratch / "models/lora_adapters", base_name=context.config.base_model_id, base_revision=None)
    peak = trained.peak_bytes
    del trained
    free_memory()
    return TrialRun(min(steps.seconds) / plan.micro_batch, checkpoint_bytes, peak)


class _Steps:
    """Times the steps of the run in small; the first is slower than the rest, and the quickest is nearest to a long run's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.monotonic()

    def _heard(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, TrainStep):
            self.seconds.append(now - self._last)
        self._last = now

    def until_checkpoint(self, training: Iterator[Event]) -> int:
        """Bytes of the first checkpoint."""
        for event in training:
            self._heard(event)
            if isinstance(event, CheckpointSaved):
                return event.bytes
        raise DamagedState("The run in small ended without a checkpoint.", "", "Look at logs/run.log.")

    def quietly(self, training: Generator[Event, None, Trained]) -> Generator[Event, None, Trained]:
        """Run to the end; of what it says only warnings are passed on: its steps are none of the run's."""
        while True:
            try:
                event = next(training)
            except StopIteration as end:
                return cast("Trained", end.value)
            self._heard(event)
            if isinstance(event, Message) and event.level == "warning":
                yield event


def _archive(context: Context, scratch: Run) -> Generator[Event, None, None]:
    from engine.packaging import build_archive, hash_file

    size = build_archive(scratch).bytes
    for made in (scratch.archive, hash_file(scratch)):
        made.unlink()
    yield Check(NAME, "archive", "ok", f"{size / 1e6:.1f} MB, reopened")


def _told(whole: Forecast, machine: Machine) -> Generator[Event, None, None]:
    yield Check(NAME, "forecast: pairs", "ok", _clock(whole.seconds_pairs))
    yield Check(NAME, "forecast: training", "ok", _clock(whole.seconds_training))
    yield Check(NAME, "forecast: disk", "ok", f"{whole.disk_bytes / 1e6:.0f} MB")
    room = machine.room / GIB
    for name, size in _peaks(whole, machine).items():
        told = f"{size / GIB:.1f} of {room:.1f} GiB at the peak, as measured"
        yield Check(NAME, f"forecast: memory, {name}", "ok", told)


def _peaks(whole: Forecast, machine: Machine) -> dict[str, float]:
    """Bytes at the peak of each long stage; what torch measures on a GPU leaves CUDA's own share out."""
    beside = machine.context if machine.device_type == "cuda" else 0
    return {"pairs": whole.peak_bytes_pairs + beside, "training": whole.peak_bytes + beside}


def _forecast_event(whole: Forecast, machine: Machine, device_number: int) -> Event:
    on_gpu = machine.device_type == "cuda"
    return events.Forecast(
        seconds={"pairs": whole.seconds_pairs, "training": whole.seconds_training},
        peak_bytes=_peaks(whole, machine),
        on_gpu=on_gpu,
        gpu=gpu_of_cuda(device_number) if on_gpu else None,
        disk_bytes=whole.disk_bytes,
    )


def _require_room(context: Context, whole: Forecast) -> None:
    free = shutil.disk_usage(context.run.folder).free
    if whole.disk_bytes > free:
        raise PreconditionError(
            f"The run needs {whole.disk_bytes / GIB:.1f} GiB of disk, and {free / GIB:.1f} GiB are free.",
            "Pairs, checkpoints and the archive would not fit.",
            "Free some space, give another --output-dir, or make --num-examples smaller.",
        )


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
