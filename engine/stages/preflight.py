"""Stage 6: rehearse the run on a small scale, with the same code: some pairs, training steps on the longest pair, a
checkpoint, a resume, an archive. It chooses number format and training plan, and forecasts the run from measurements.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace

from engine.core import layout
from engine.core.errors import PreconditionError
from engine.core.events import Check, Event, Message
from engine.core.statistics import fraction, mean
from engine.core.wording import plural
from engine.dpo.planning.forecast import Measurements, forecast
from engine.dpo.planning.plan import TrainingPlan, effective_batch
from engine.dpo.planning.process_count import local_processes
from engine.dpo.planning.workload import Workload
from engine.machine.device import resolve_device
from engine.machine.memory import MemoryPeak, free_memory
from engine.machine.optimizers import require_optimizer
from engine.models.adapters.source import adapter_folder
from engine.models.backend import Backend, load_backend
from engine.models.loading import load_tokenizer, run_date
from engine.models.templates.option import template_key
from engine.pairs.data.record import OK, Pair
from engine.pairs.formats.folders import hash_of_files
from engine.pairs.formats.native_form import pair_of_record
from engine.pairs.generation.cost import expected_prompts
from engine.pairs.generation.generate import GenerationInputs
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import check_method, is_generated_locally, record_maker, sequentially
from engine.pairs.generation.prompts import Prompt, load_prompts, pairs_wanted
from engine.pairs.generation.settings import GenerationSettings
from engine.preflight.machine import plan_inputs
from engine.preflight.pilot import judge_pilot, make_pilot, require_promising_pilot
from engine.preflight.plan_search import PlanInputs, fitting_plan, require_memory
from engine.preflight.rehearsal import Rehearsal, longest_row
from engine.preflight.report import duration, forecast_checks, forecast_event, require_disk
from engine.preflight.template import check_template
from engine.preflight.timing import time_batch
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.results import PreflightResult
from engine.stages.base import StageEnd, StageRun
from engine.stages.load_judge import judge_loader, ordering_judge, policy_of
from engine.storage.files import sha256_of_file
from engine.storage.jsonl import dumps

READ_AS = {
    "chat_template": template_key,
    "server_url": lambda config: config.server_url is not None,  # which machines they are on changes nothing
    "critic_url": lambda config: config.critic_url is not None,
    "pairs": lambda config: hash_of_files(config.pairs),
    "num_drafts": lambda config: config.num_drafts if config.method == "best-of-n" else None,
    "few_shot": lambda config: sha256_of_file(config.few_shot) if config.few_shot else None,
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), effective_batch),
}
FIELDS_DEPEND_ON = {
    "dtype": (
        "dtype",
        "device",
        "base_model_id",
        "base_model_revision",
        "adapter.tensors_sha256",
        "adapter.base_model_commit",
    ),
}
"""Fields of the result that keep their values while these inputs do."""
PROMPTS_MEASURED = 200
"""How many prompts to search for one that fits."""


def run(context: Context) -> StageRun:
    check_method(context.config)
    require_optimizer(context.config)
    scratch = context.run / "preflight/trial"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        plan, measured, inputs = yield from _trial_run(context, Run(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    config = context.config
    share = measured.usable_share
    prompts = expected_prompts(config, share) if config.pairs is None else pairs_wanted(config)
    here = local_processes(config, plan.processes)
    run_forecast = forecast(
        measured,
        Workload.of(config, prompts, measured.usable_share),
        plan,
        pair_processes=here if is_generated_locally(config) else 1,
        evaluation_processes=here,
        share_device=inputs.machine.device_type != "cuda",
    )
    if config.pairs is not None:
        run_forecast = replace(run_forecast, seconds_pairs=0.0)  # they already exist
    yield from forecast_checks(run_forecast, inputs.machine)
    yield forecast_event(run_forecast, inputs.machine, resolve_device(config).index or 0)
    require_disk(context.run.folder, run_forecast)
    summary = f"all steps worked; the run will take about {duration(run_forecast.seconds)}"
    return StageEnd(
        summary,
        PreflightResult(
            dtype=plan.dtype,
            forecast=run_forecast.as_dict(),
            measured=measured.__dict__,
            plan=plan.as_dict(),
            memory=inputs.terms(plan, config.max_length, config.load_in_4bit),
            machine=inputs.machine.__dict__,
            date=run_date(config).isoformat(),
        ),
    )


def _trial_run(context: Context, scratch: Run) -> Generator[Event, None, tuple[TrainingPlan, Measurements, PlanInputs]]:
    yield from check_template(context.config, context.token_text)
    prompts = load_prompts(context.config, context.token_text)
    if not prompts:
        raise PreconditionError(
            f"{context.config.dataset} has no prompts in the rows of --split.", "", "Choose another --split."
        )
    inputs = yield from plan_inputs(context.config, context.run, context.token_text, prompts)
    config = inputs.config
    context = replace(context, config=config)
    require_memory(inputs)

    made = yield from _make_pairs(context, prompts)
    row = longest_row(made.longest, load_tokenizer(config, context.token_text), config.max_length)
    context.stop.raise_if_requested()

    rehearsal = Rehearsal.of(config, context.run, scratch, context.stop, context.token_text)
    plan, tried = yield from fitting_plan(inputs, rehearsal, row)
    yield Check("plan", "ok", f"{plan.in_words}: {plan.why.get('micro_batch', '')}")
    yield from _archive(scratch)
    measured = Measurements(
        batch_size=made.batch.batch_size,
        reply_tokens=made.reply_tokens,
        prefill_seconds=made.batch.prefill_seconds,
        decode_seconds=made.batch.decode_seconds,
        record_bytes=made.record_bytes,
        step_seconds=tried.step_seconds,
        longest_prompt_tokens=made.longest_prompt_tokens,
        longest_replies_tokens=2 * max(config.max_length - made.longest_prompt_tokens, 0.0),
        prompt_tokens=made.prompt_tokens,
        replies_tokens=made.replies_tokens,
        head_weight=inputs.shape.head_weight,
        checkpoint_bytes=tried.checkpoint_bytes,
        peak_bytes=tried.peak_bytes,
        peak_bytes_pairs=made.peak_bytes,
        load_seconds=made.load_seconds,
        usable_share=made.usable_share,
    )
    return plan, measured, inputs


@dataclass(frozen=True)
class BatchTimes:
    """How fast the policy reads and writes a full batch."""

    batch_size: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class FirstPairs:
    """What was measured on the first pairs."""

    longest: Pair
    reply_tokens: float
    longest_prompt_tokens: float
    prompt_tokens: float
    """The mean length of a prompt."""
    replies_tokens: float
    """The mean length of both replies of a pair together."""
    record_bytes: int
    usable_share: float
    batch: BatchTimes
    load_seconds: float
    peak_bytes: int


def _make_pairs(context: Context, prompts: list[Prompt]) -> Generator[Event, None, FirstPairs]:
    """Make the pilot's pairs, or one pair without a pilot, and time a batch. Raises DataError if the pilot shows that the
    gate cannot open.

    context   its configuration has the chosen number format
    """
    config, peak = context.config, MemoryPeak(resolve_device(context.config))
    inputs, backend, load_seconds = yield from _load_inputs(context)
    short_first = _short_first(prompts, backend, config.max_length)
    wants_pilot = bool(config.pilot_prompts) and config.pairs is None  # imported pairs are judged as they are
    pairs = yield from _first_pairs(
        context.run, inputs, prompts[: config.pilot_prompts] if wants_pilot else [], short_first[0]
    )
    batch = yield from _time_a_batch(inputs, backend, short_first)
    made = _measure(pairs, backend, batch, load_seconds, peak)
    del inputs, backend
    free_memory()
    context.stop.raise_if_requested()
    if wants_pilot:
        tokenizer = load_tokenizer(config, context.token_text)
        estimates = yield from judge_pilot(
            config, context.run, pairs, tokenizer, judge_loader(context), context.stop, context.token_text
        )
        yield from require_promising_pilot(estimates, config, context.run / layout.PILOT_PAIRS)
    return made


def _load_inputs(context: Context) -> Generator[Event, None, tuple[GenerationInputs, Backend, float]]:
    """Returns the inputs of generation, the policy, and the seconds that loading took."""
    config = context.config
    examined = yield from ordering_judge(context)
    settings = GenerationSettings.of(config if examined is None else examined.config)
    started = time.monotonic()
    adapter = adapter_folder(config, context.run, context.token_text)
    backend = load_backend(config, adapter, context.stop, context.token_text, context.emit)
    load_seconds = time.monotonic() - started
    for note in backend.check(settings.sampling):
        yield Message("warning", note)
    judge = None if examined is None else examined.judge(judge_loader(context), policy_of(backend))
    make = sequentially(record_maker(backend, settings, judge, context.stop))
    identity = RecordIdentity.of(config, settings, context.run.results, dtype=config.dtype)
    return GenerationInputs(config, backend, settings, make, identity, context.stop), backend, load_seconds


def _first_pairs(
    run: Run, inputs: GenerationInputs, pilot: list[Prompt], short: Prompt
) -> Generator[Event, None, list[Pair]]:
    """The pilot's pairs or, without a pilot, one pair of the short prompt."""
    started = time.monotonic()
    if pilot:
        pairs = yield from make_pilot(run, pilot, inputs)
    else:
        batch = next(item for item in inputs.make_batches([[short]]) if isinstance(item, list))
        pairs = [pair_of_record(record) for _, record in batch]
    title = "one pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    yield Check(title, "ok", f"{time.monotonic() - started:.1f} s, {inputs.backend.tokens} tokens")
    return pairs


def _time_a_batch(
    inputs: GenerationInputs, backend: Backend, prompts: list[Prompt]
) -> Generator[Event, None, BatchTimes]:
    longest = inputs.config.max_prompt_tokens + inputs.settings.overhead_tokens(backend)
    batch_size = backend.batch_size(longest)
    size = min(batch_size, len(prompts))
    prefill, decode = time_batch(backend, prompts[:size])
    yield Check("a batch", "ok", f"{plural(size, 'prompt')}: {prefill:.2f} s to read, {size / decode:.0f} tokens/s")
    return BatchTimes(batch_size, prefill, decode)


def _measure(
    pairs: list[Pair], backend: Backend, batch: BatchTimes, load_seconds: float, peak: MemoryPeak
) -> FirstPairs:
    longest = max(pairs, key=lambda pair: (pair.status == OK, -len(pair.prompt)))
    usable = [pair for pair in pairs if pair.status == OK] or pairs
    return FirstPairs(
        longest=longest,
        reply_tokens=_mean_reply_tokens(backend, [each for pair in pairs for each in _generated_texts(pair)]),
        longest_prompt_tokens=backend.length(longest.messages),
        prompt_tokens=mean([backend.length(pair.messages) for pair in pairs]),
        replies_tokens=2 * _mean_reply_tokens(backend, [each for pair in usable for each in _replies(pair)]),
        record_bytes=round(mean([len(dumps(asdict(pair))) for pair in pairs])),
        usable_share=fraction([pair.status == OK for pair in pairs]),
        batch=batch,
        load_seconds=load_seconds,
        peak_bytes=peak.bytes(),
    )


def _generated_texts(pair: Pair) -> tuple[str, ...]:
    return (pair.base_response, pair.critic_notes, pair.revised_response)


def _replies(pair: Pair) -> tuple[str, ...]:
    """The texts that train."""
    return (pair.base_response, pair.revised_response)


def _mean_reply_tokens(backend: Backend, texts: list[str]) -> float:
    """The mean length of the texts, counted here because an earlier start may have made them."""
    overhead = backend.length([{"role": "user", "content": ""}])
    replies = [text for text in texts if text]
    return (
        mean([backend.length([{"role": "user", "content": text}]) - overhead for text in replies]) if replies else 1.0
    )


def _short_first(prompts: list[Prompt], backend: Backend, max_length: int) -> list[Prompt]:
    """The prompts, starting with one that leaves half of `--max-length` for replies, else the shortest."""
    lengths = [backend.length(prompt.messages) for prompt in prompts[:PROMPTS_MEASURED]]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length // 2]
    first = fitting[0] if fitting else lengths.index(min(lengths))
    return [prompts[first], *prompts[:first], *prompts[first + 1 :]]


def _archive(scratch: Run) -> Generator[Event, None, None]:
    from engine.packaging import build_archive, hash_file

    size = build_archive(scratch).bytes
    for made in (scratch.archive, hash_file(scratch)):
        made.unlink()
    yield Check("archive", "ok", f"{size / 1e6:.1f} MB, reopened")
