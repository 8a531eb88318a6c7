"""Stage 6: the long run in small, on the same code: a pair, training steps on the longest pair, a checkpoint, a resume, an
archive; and from what it measured a forecast of the whole.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

import psutil

from engine.context import Context
from engine.dpo.forecast import Forecast, Measured, forecast
from engine.errors import DamagedState, PreconditionError
from engine.events import Check, CheckpointSaved, Event, Message
from engine.jsonl import dumps
from engine.models.batch_size import chosen_batch_size
from engine.models.loading import adapter_folder, resolve_device, resolve_dtype
from engine.models.local import LocalBackend, free_memory, load_stage2_backend
from engine.models.sampling import SamplingSettings
from engine.pairs.constitution import load_constitution
from engine.pairs.generation import make_records
from engine.pairs.prompts import Prompt, load_prompts
from engine.pairs.record import Pair, PairRecord
from engine.pairs.training_set import preference_row
from engine.run import Run
from engine.stages.base import StageResult, StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.dpo.dataset import Row
    from engine.dpo.trainer import Trained

OUTPUTS: tuple[str, ...] = ("preflight",)

NAME = "preflight"
PROBE_TOKENS = 8
"""Length of the replies of the batch that is timed."""
STEPS = 3
"""Two before the interruption at the latest, and one for the resume."""
LOOKED_AT = 200
"""Prompts that are measured to find one that fits."""
GIB = 1 << 30


def depends_on(context: Context) -> dict[str, Any]:
    fields = (
        "base_model_id base_model_revision dataset split num_examples max_new_tokens max_length generation_batch_size device "
        "dtype per_device_train_batch_size gradient_checkpointing cpu_ref_model num_train_epochs save_total_limit"
    )
    return {
        **{field: getattr(context.config, field) for field in fields.split()},
        "adapter": context.run.result("adapter").get("tensors_sha256"),
    }


def run(context: Context) -> StageRun:
    scratch = context.run / NAME
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        measured = yield from _short_run(context, Run(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    config = context.config
    whole = forecast(
        measured,
        num_examples=config.num_examples,
        batch_size=chosen_batch_size(config),
        max_new_tokens=config.max_new_tokens,
        epochs=config.num_train_epochs,
        save_total_limit=config.save_total_limit,
    )
    yield from _told(whole)
    _require_room(context, whole)
    minutes = (whole.seconds_pairs + whole.seconds_training) / 60
    return StageResult(
        f"all steps worked; the whole takes about {minutes:.0f} min"
        if minutes >= 1
        else f"all steps worked; the whole takes about {minutes * 60:.0f} s",
        {"forecast": whole.as_dict(), "measured": measured.__dict__, "dtype": str(resolve_dtype(config))},
    )


def _short_run(context: Context, scratch: Run) -> Generator[Event, None, Measured]:
    config = context.config
    prompts = load_prompts(config, context.token_text)
    if not prompts:
        raise PreconditionError(f"{config.dataset} ({config.split}) has no prompts.", "", "Give another --split.")
    dtype = str(resolve_dtype(config)).removeprefix("torch.")
    yield Check(NAME, "number format", "ok", f"{dtype} on {resolve_device(config)} (--dtype {config.dtype})")

    backend = load_stage2_backend(config, adapter_folder(context), context.stop, context.token_text)
    prompts = _short_first(prompts, backend, config.max_length)
    started = time.monotonic()
    record = make_records(prompts[:1], backend, load_constitution(config.constitution), config)[0]
    yield Check(NAME, "one pair", "ok", f"{time.monotonic() - started:.1f} s, {backend.tokens} tokens: {record.status}")
    reply_tokens = backend.tokens / max(1 + 2 * record.attempts, 1)
    prefill, decode = _time_a_batch(backend, prompts[: chosen_batch_size(config)])
    size = min(chosen_batch_size(config), len(prompts))
    yield Check(NAME, "a batch", "ok", f"{size} prompts: {prefill:.2f} s to read, {size / decode:.0f} tokens/s")
    tokenizer, pair_tokens = backend.tokenizer, backend.length(prompts[0].messages) + reply_tokens
    row = longest_row(record, tokenizer, config.max_length)
    del backend
    free_memory()
    context.stop.raise_if_requested()

    step_seconds, checkpoint_bytes = yield from _train_and_resume(context, scratch, row)
    yield from _archive(context, scratch)
    return Measured(
        reply_tokens=reply_tokens,
        prefill_seconds=prefill,
        decode_seconds=decode,
        record_bytes=len(dumps(record.as_dict())),
        step_seconds=step_seconds,
        longest_tokens=config.max_length,
        pair_tokens=pair_tokens,
        checkpoint_bytes=checkpoint_bytes,
        peak_bytes=_peak_bytes(context),
    )


def _short_first(prompts: list[Prompt], backend: LocalBackend, max_length: int) -> list[Prompt]:
    """The prompts, the first one that leaves half of `--max-length` to the replies in front; else the shortest."""
    lengths = [backend.length(prompt.messages) for prompt in prompts[:LOOKED_AT]]
    fitting = [index for index, length in enumerate(lengths) if length <= max_length // 2]
    first = fitting[0] if fitting else lengths.index(min(lengths))
    return [prompts[first], *prompts[:first], *prompts[first + 1 :]]


def longest_row(record: PairRecord, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    """The pair, its words repeated until prompt and reply fill `max_length` tokens, or nearly so."""
    from engine.dpo.dataset import measure_lengths

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


def _time_a_batch(backend: LocalBackend, prompts: list[Prompt]) -> tuple[float, float]:
    """(seconds to read the prompts, seconds per further token), of a batch."""
    conversations = [prompt.messages for prompt in prompts]
    seeds = list(range(len(prompts)))
    backend.reply(conversations, SamplingSettings(1), seeds)  # the first batch of a shape pays for more than itself
    one, many = (
        _seconds(lambda n=n: backend.reply(conversations, SamplingSettings(n), seeds)) for n in (1, 1 + PROBE_TOKENS)
    )
    decode = max((many - one) / PROBE_TOKENS, 1e-4)
    return one, decode


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _train_and_resume(context: Context, scratch: Run, row: Row) -> Generator[Event, None, tuple[float, int]]:
    """(seconds of a step, bytes of a checkpoint); interrupted after its first checkpoint, then gone on with."""
    from engine.dpo.trainer import save_adapter, train

    small = context.config.model_copy(
        update={"output_dir": scratch.folder, "gradient_accumulation_steps": 1, "save_steps": 1}
    )
    short = Context(config=small, run=scratch, stop=context.stop, token=context.token)
    for stage in ("workspace", "adapter"):
        scratch.record_stage(stage, status="done", result=context.run.result(stage))
    rows = [row] * small.per_device_train_batch_size
    first = train(short, rows, max_steps=STEPS)
    checkpoint_bytes, seconds = _until_checkpoint(first)
    first.close()  # as an interruption would end it: the step under way is finished, and saved
    yield Check(NAME, "training step", "ok", f"on a pair of {small.max_length} tokens, loss starts at ln 2")
    yield Check(NAME, "checkpoint", "ok", f"{checkpoint_bytes / 1e6:.1f} MB")
    free_memory()
    trained = yield from _quietly(train(short, rows, max_steps=STEPS))
    if trained.resumed_from is None:
        raise DamagedState(
            "The run in small did not go on from its checkpoint.",
            "A long run that is interrupted would begin anew.",
            "Look at logs/run.log; then start again.",
        )
    yield Check(NAME, "resume", "ok", f"went on from step {trained.resumed_from}")
    save_adapter(trained, scratch / "models/lora_adapters", base_name=context.config.base_model_id, base_revision=None)
    return seconds / small.per_device_train_batch_size, checkpoint_bytes


def _until_checkpoint(training: Iterator[Event]) -> tuple[int, float]:
    """(bytes of the first checkpoint, seconds of the step before it)."""
    last, seconds = time.monotonic(), 0.0
    for event in training:
        if isinstance(event, CheckpointSaved):
            return event.bytes, seconds
        now = time.monotonic()
        last, seconds = now, now - last
    raise DamagedState("The run in small ended without a checkpoint.", "", "Look at logs/run.log.")


def _quietly(training: Generator[Event, None, Trained]) -> Generator[Event, None, Trained]:
    """Run to the end; of what it says only warnings are passed on: its steps are none of the run's."""
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            return cast("Trained", end.value)
        if isinstance(event, Message) and event.level == "warning":
            yield event


def _archive(context: Context, scratch: Run) -> Generator[Event, None, None]:
    from engine.packaging import build_archive, hash_file

    size = build_archive(scratch).bytes
    for made in (scratch.archive, hash_file(scratch)):
        made.unlink()
    yield Check(NAME, "archive", "ok", f"{size / 1e6:.1f} MB, reopened")


def _told(whole: Forecast) -> Generator[Event, None, None]:
    yield Check(NAME, "forecast: pairs", "ok", _clock(whole.seconds_pairs))
    yield Check(NAME, "forecast: training", "ok", _clock(whole.seconds_training))
    yield Check(NAME, "forecast: disk", "ok", f"{whole.disk_bytes / 1e6:.0f} MB")
    yield Check(NAME, "forecast: memory", "ok", f"{whole.peak_bytes / GIB:.1f} GiB at the peak of the run in small")


def _require_room(context: Context, whole: Forecast) -> None:
    free = shutil.disk_usage(context.run.folder).free
    if whole.disk_bytes > free:
        raise PreconditionError(
            f"The run needs {whole.disk_bytes / GIB:.1f} GiB of disk, and {free / GIB:.1f} GiB are free.",
            "Pairs, checkpoints and the archive would not fit.",
            "Free some space, give another --output-dir, or make --num-examples smaller.",
        )


def _peak_bytes(context: Context) -> int:
    import torch

    device = resolve_device(context.config)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
