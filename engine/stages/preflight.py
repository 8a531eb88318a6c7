"""Stage 6: rehearse the run on a small scale, with the same code: a pair, training steps on the longest pair, a
checkpoint, a resume, an archive. It chooses number format and training plan, and forecasts the run from measurements.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from dataclasses import replace

from engine.core.errors import PreconditionError
from engine.core.events import Check, Event, Message
from engine.dpo.planning.forecast import Measurements, forecast
from engine.dpo.planning.plan import TrainingPlan, effective_batch
from engine.machine.device import resolve_device
from engine.machine.memory import MemoryPeak, free_memory
from engine.models.adapters.source import adapter_folder
from engine.models.backend import Backend, load_backend
from engine.models.loading import load_tokenizer
from engine.models.templates.given import template_key
from engine.pairs.formats.folders import hash_of_files
from engine.pairs.generation.critique_revision import make_records
from engine.pairs.generation.prompts import Prompt, load_prompts, pairs_wanted
from engine.pairs.generation.recipe import GenerationSettings
from engine.preflight.machine import plan_inputs
from engine.preflight.plan_search import PlanInputs, fitting_plan, require_memory
from engine.preflight.report import clock, forecast_event, forecast_lines, require_disk
from engine.preflight.template import check_template
from engine.preflight.timing import time_batch
from engine.preflight.trial import longest_row
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.results import PreflightResult
from engine.stages.base import StageEnd, StageRun
from engine.storage.files import sha256_of_file
from engine.storage.jsonl import dumps

READ_AS = {
    "chat_template": template_key,
    "pairs": lambda config: hash_of_files(config.pairs),
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
"""Prompts to search for one that fits."""


def run(context: Context) -> StageRun:
    scratch = context.run / "preflight"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        plan, measured, inputs = yield from _trial_run(context, Run(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    config = context.config
    whole = forecast(
        measured,
        num_examples=pairs_wanted(config),
        rounds=config.rounds,
        max_new_tokens=config.max_new_tokens,
        epochs=config.num_train_epochs,
        save_total_limit=config.save_total_limit,
        plan=plan,
    )
    if config.pairs is not None:
        whole = replace(whole, seconds_pairs=0.0)  # they are there already
    yield from forecast_lines(whole, inputs.machine)
    yield forecast_event(whole, inputs.machine, resolve_device(config).index or 0)
    require_disk(context, whole)
    summary = f"all steps worked; the run will take about {clock(whole.seconds_pairs + whole.seconds_training)}"
    return StageEnd(
        summary,
        PreflightResult(
            dtype=plan.dtype,
            forecast=whole.as_dict(),
            measured=measured.__dict__,
            plan=plan.as_dict(),
            memory=inputs.terms(plan, config.max_length, config.load_in_4bit),
            machine=inputs.machine.__dict__,
        ),
    )


def _trial_run(context: Context, scratch: Run) -> Generator[Event, None, tuple[TrainingPlan, Measurements, PlanInputs]]:
    yield from check_template(context.config, context.token_text)
    prompts = load_prompts(context.config, context.token_text)
    if not prompts:
        raise PreconditionError(
            f"{context.config.dataset} ({context.config.split}) has no prompts.", "", "Choose another --split."
        )
    inputs = yield from plan_inputs(context, prompts)
    config, device = inputs.context.config, resolve_device(context.config)
    require_memory(inputs)

    peak_of_pairs, recipe = MemoryPeak(device), GenerationSettings.of(config)
    backend = load_backend(config, adapter_folder(context), context.stop, context.token_text)
    for note in backend.check(recipe.sampling):
        yield Message("warning", note)
    prompts = _short_first(prompts, backend, config.max_length)
    started = time.monotonic()
    record = make_records(prompts[:1], backend, recipe)[0]
    yield Check("one pair", "ok", f"{time.monotonic() - started:.1f} s, {backend.tokens} tokens: {record.status}")
    reply_tokens = backend.tokens / max(1 + 2 * record.attempts, 1)
    batch_size = backend.batch_size(config.max_prompt_tokens + recipe.beside_the_prompt(backend))
    size = min(batch_size, len(prompts))
    prefill, decode = time_batch(backend, prompts[:size])
    yield Check("a batch", "ok", f"{size} prompts: {prefill:.2f} s to read, {size / decode:.0f} tokens/s")
    pair_tokens = backend.length(prompts[0].messages) + reply_tokens
    tokenizer = load_tokenizer(config, context.token_text)
    row = longest_row(record, tokenizer, config.max_length)
    bytes_of_pairs = peak_of_pairs.bytes()
    del backend
    free_memory()
    context.stop.raise_if_requested()

    plan, tried = yield from fitting_plan(inputs, scratch, row)
    yield Check("plan", "ok", f"{plan.in_words}: {plan.why.get('micro_batch', '')}")
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
    return plan, measured, inputs


def _short_first(prompts: list[Prompt], backend: Backend, max_length: int) -> list[Prompt]:
    """The prompts, starting with one that leaves half of `--max-length` for replies, else the shortest."""
    lengths = [backend.length(prompt.messages) for prompt in prompts[:PROMPTS_MEASURED]]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length // 2]
    first = fitting[0] if fitting else lengths.index(min(lengths))
    return [prompts[first], *prompts[:first], *prompts[first + 1 :]]


def _archive(context: Context, scratch: Run) -> Generator[Event, None, None]:
    from engine.packaging import build_archive, hash_file

    size = build_archive(scratch).bytes
    for made in (scratch.archive, hash_file(scratch)):
        made.unlink()
    yield Check("archive", "ok", f"{size / 1e6:.1f} MB, reopened")
