"""Stage 7: draft, critique and revision for every prompt, each record on disk before it is counted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core import layout
from engine.core.errors import PreconditionError
from engine.core.events import Event, Message, PairFailed, PairMade, Progress
from engine.machine.memory import free_memory
from engine.models.adapters.source import adapter_folder
from engine.models.backend import Backend, load_backend
from engine.pairs.data.record import OK, PairRecord
from engine.pairs.generation.critique_revision import make_records, plan_batches, too_long
from engine.pairs.generation.prompts import Prompt, load_prompts
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.principles.constitution import DEFAULT_PATH
from engine.stages.base import Context, StageResult, StageRun
from engine.storage.files import sha256_of_file, write_json
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

OUTPUTS: tuple[str, ...] = ("pairs",)

NAME = "pairs"
LEAST_ROOM = 16
"""Tokens that must be left to a prompt."""


def depends_on(context: Context) -> dict[str, Any]:
    """Not on the batch size: a record's text does not, and whoever runs out of memory may go on with a smaller one."""
    config = context.config
    generation = (
        "dataset dataset_revision split num_examples seed base_model_id base_model_revision max_new_tokens max_prompt_tokens "
        "temperature top_p max_attempts rounds dtype server_url server_model"
    )
    return {
        **{field: getattr(config, field) for field in generation.split()},
        "constitution": sha256_of_file(config.constitution or DEFAULT_PATH),
        "few_shot": sha256_of_file(config.few_shot) if config.few_shot else None,
        "adapter": context.run.result("adapter").get("tensors_sha256"),
    }


def run(context: Context) -> StageRun:
    config = context.config
    recipe = GenerationSettings.of(config)
    prompts = load_prompts(config, context.token_text)
    if len(prompts) < config.num_examples:
        yield Message(
            "warning",
            f"{config.dataset} ({config.split}) has {len(prompts)} distinct prompts, not "
            f"{config.num_examples}: the run makes what there is.",
            NAME,
        )
    yield Message("info", _where(context), NAME)
    backend = load_backend(config, adapter_folder(context), context.stop, context.token_text)
    for note in backend.check(recipe.sampling):
        yield Message("warning", note, NAME)
    with JsonlAppender(context.run / layout.PAIRS_JSONL) as appender:
        if appender.torn:
            yield Message(
                "warning", f"An unfinished record ({appender.torn} bytes) was put aside in {appender.torn_path}.", NAME
            )
        recorded = Recorded.read(context.run / layout.PAIRS_JSONL)
        yield from generate_pairs(context, prompts, backend, recipe, appender, recorded)
    for note in backend.warnings():
        yield Message("warning", note, NAME)
    tokens = backend.tokens
    del backend
    free_memory()
    counts = Recorded.read(context.run / layout.PAIRS_JSONL)
    return StageResult(
        f"{counts.ok} usable of {counts.total} prompts ({counts.ok / max(counts.total, 1):.0%})",
        {
            "pairs_sha256": sha256_of_file(context.run / layout.PAIRS_JSONL),
            "records": counts.total,
            "ok": counts.ok,
            "generated_tokens": tokens,
        },
    )


def _where(context: Context) -> str:
    config = context.config
    if config.server_url:
        return f"{config.server_model} on {config.server_url} makes the pairs."
    return f"Loading {config.base_model_id} with the Stage 2 adapter."


@dataclass
class Recorded:
    """What `pairs.jsonl` has so far."""

    ids: set[str]
    ok: int

    @property
    def total(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, path: Path) -> Recorded:
        rows = [row for _, row in read_jsonl(path) if not isinstance(row, BadLine)]
        return cls({str(row["id"]) for row in rows}, sum(row["status"] == OK for row in rows))

    def add(self, record: PairRecord) -> None:
        self.ids.add(record.id)
        self.ok += record.status == OK


def generate_pairs(
    context: Context,
    prompts: list[Prompt],
    backend: Backend,
    recipe: GenerationSettings,
    appender: JsonlAppender,
    recorded: Recorded,
) -> Iterator[Event]:
    """Make what is not recorded yet. A batch of which some records are there is made again whole, because a row's text
    may depend, in its last bits, on the shape of its batch; what is there already stays as it is.
    """
    clock = Clock(recorded.total, len(prompts))
    yield clock.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    beside = recipe.beside_the_prompt(backend)
    most = longest_prompt(context.config.max_prompt_tokens, backend.context_length, beside)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > most and prompt.id not in recorded.ids:
            yield _acknowledge(too_long(prompt, length, most), appender, recorded)
    fitting = [index for index, length in enumerate(lengths) if length <= most]
    if all(prompts[index].id in recorded.ids for index in fitting):
        return
    longest = max(lengths[index] for index in fitting) + beside
    size = _planned_batch_size(context, backend, longest)
    for batch in plan_batches([prompts[i] for i in fitting], [lengths[i] for i in fitting], size):
        if all(prompt.id in recorded.ids for prompt in batch):
            continue
        for record in make_records(batch, backend, recipe):
            if record.id not in recorded.ids:
                yield _acknowledge(record, appender, recorded)
        yield clock.progress(recorded, backend)
        context.stop.raise_if_requested()


def longest_prompt(max_prompt_tokens: int, context_length: int | None, beside: int) -> int:
    """The most tokens of a prompt: what the option allows, and what leaves the model room for all that comes beside it.

    Raises PreconditionError where nothing is left.
    """
    if context_length is None:
        return max_prompt_tokens
    if context_length - beside < LEAST_ROOM:
        raise PreconditionError(
            f"The model reads {context_length} tokens, and {beside} of them are spoken for.",
            "Draft, critique, revision, their requests and the examples stand in one conversation with the prompt.",
            "Give a smaller --max-new-tokens, or fewer examples with --few-shot.",
        )
    return min(max_prompt_tokens, context_length - beside)


def _planned_batch_size(context: Context, backend: Backend, longest: int) -> int:
    """The batch size of the plan that the first start wrote: a run that goes on makes the same batches."""
    if context.config.generation_batch_size:
        return context.config.generation_batch_size
    path = context.run / layout.PAIRS_PLAN
    if path.exists():
        return int(json.loads(path.read_text(encoding="ascii"))["batch_size"])
    size = backend.batch_size(longest)
    write_json(path, {"batch_size": size, "longest_tokens": longest})
    return size


def _acknowledge(record: PairRecord, appender: JsonlAppender, recorded: Recorded) -> PairMade | PairFailed:
    appender.append(record.as_dict())
    recorded.add(record)
    if record.status != OK:
        return PairFailed(
            record.id, record.prompt, record.status, record.base_response, record.revised_response, record.attempts
        )
    return PairMade(
        id=record.id,
        prompt=record.prompt,
        base_response=record.base_response,
        revised_response=record.revised_response,
        critic_notes=record.critic_notes,
        principle_ids=record.principle_ids,
        attempts=record.attempts,
    )


class Clock:
    """Rate and time left, over what this process made: what was there before it started took no time of its."""

    def __init__(self, already: int, total: int) -> None:
        self._already, self._total = already, total
        self._started = time.monotonic()

    def progress(self, recorded: Recorded, backend: Backend) -> Progress:
        seconds = time.monotonic() - self._started
        made = recorded.total - self._already
        rate = made / seconds if made and seconds > 0 else None
        left = (self._total - recorded.total) / rate if rate else None
        share = f"{recorded.ok / recorded.total:.0%} usable" if recorded.total else ""
        tokens = backend.tokens
        speed = f"{tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
        note = ", ".join(part for part in (share, speed) if part)
        return Progress(NAME, recorded.total, self._total, "pairs", rate, left, note)
