"""Stage 7: draft, critique and revision for every prompt, each record on disk before it is counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import names
from engine.events import Event, Message, PairFailed, PairMade, Progress
from engine.files import sha256_of_file
from engine.jsonl import BadLine, JsonlAppender, read_jsonl
from engine.models.batch_size import chosen_batch_size
from engine.models.loading import adapter_folder
from engine.models.local import free_memory, load_stage2_backend
from engine.pairs.constitution import DEFAULT_PATH, Constitution, load_constitution
from engine.pairs.generation import Backend, make_records, plan_batches, too_long
from engine.pairs.judge import Judge, load_judge
from engine.pairs.prompts import Prompt, load_prompts
from engine.pairs.record import OK, PairRecord
from engine.stages.base import Context, StageResult, StageRun

OUTPUTS: tuple[str, ...] = ("pairs",)

NAME = "pairs"


def depends_on(context: Context) -> dict[str, Any]:
    config = context.config
    generation = (
        "dataset split num_examples seed base_model_id base_model_revision max_new_tokens max_prompt_tokens temperature top_p "
        "generation_batch_size max_attempts judge dtype"
    )
    return {
        **{field: getattr(config, field) for field in generation.split()},
        "constitution": sha256_of_file(config.constitution or DEFAULT_PATH),
        "adapter": context.run.result("adapter").get("tensors_sha256"),
    }


def run(context: Context) -> StageRun:
    config = context.config
    token = context.token_text
    constitution = load_constitution(config.constitution)
    prompts = load_prompts(config, token)
    if len(prompts) < config.num_examples:
        yield Message(
            "warning",
            f"{config.dataset} ({config.split}) has {len(prompts)} distinct prompts, not "
            f"{config.num_examples}: the run makes what there is.",
            NAME,
        )
    yield Message("info", f"Loading {config.base_model_id} with the Stage 2 adapter.", NAME)
    backend = load_stage2_backend(config, adapter_folder(context), context.stop, token)
    with JsonlAppender(context.run / names.PAIRS_JSONL) as appender:
        if appender.torn:
            yield Message(
                "warning", f"An unfinished record ({appender.torn} bytes) was put aside in {appender.torn_path}.", NAME
            )
        recorded = Recorded.read(context.run / names.PAIRS_JSONL)
        yield from generate_pairs(context, prompts, backend, constitution, load_judge(config), appender, recorded)
    tokens = backend.tokens
    del backend
    free_memory()
    counts = Recorded.read(context.run / names.PAIRS_JSONL)
    return StageResult(
        f"{counts.ok} usable of {counts.total} prompts ({counts.ok / max(counts.total, 1):.0%})",
        {
            "pairs_sha256": sha256_of_file(context.run / names.PAIRS_JSONL),
            "records": counts.total,
            "ok": counts.ok,
            "generated_tokens": tokens,
        },
    )


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
    constitution: Constitution,
    judge: Judge | None,
    appender: JsonlAppender,
    recorded: Recorded,
) -> Iterator[Event]:
    """Make what is not recorded yet. A batch of which some records are there is made again whole, because a row's text
    may depend, in its last bits, on the shape of its batch; what is there already stays as it is.
    """
    config = context.config
    clock = Clock(recorded.total, len(prompts))
    yield clock.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > config.max_prompt_tokens and prompt.id not in recorded.ids:
            yield _acknowledge(too_long(prompt, length), appender, recorded)
    fitting = [index for index, length in enumerate(lengths) if length <= config.max_prompt_tokens]
    batches = plan_batches([prompts[i] for i in fitting], [lengths[i] for i in fitting], chosen_batch_size(config))
    for batch in batches:
        if all(prompt.id in recorded.ids for prompt in batch):
            continue
        for record in make_records(batch, backend, constitution, config):
            if record.id not in recorded.ids:
                yield _acknowledge(_scored(record, judge), appender, recorded)
        yield clock.progress(recorded, backend)
        context.stop.raise_if_requested()


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
        base_score=record.base_score,
        revised_score=record.revised_score,
    )


def _scored(record: PairRecord, judge: Judge | None) -> PairRecord:
    if judge is None or record.status != OK:
        return record
    base, revised = judge.score(record.messages, [record.base_response, record.revised_response])
    return replace(record, base_score=base, revised_score=revised)


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
        tokens = getattr(backend, "tokens", 0)
        speed = f"{tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
        note = ", ".join(part for part in (share, speed) if part)
        return Progress(NAME, recorded.total, self._total, "pairs", rate, left, note)
