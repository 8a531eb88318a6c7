"""Stage 7: draft, critique and revision for every prompt; each record is on disk before it counts."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.core import layout
from engine.core.errors import PreconditionError
from engine.core.events import Event, Message, PairFailed, PairMade, Progress, StageStale
from engine.machine.memory import free_memory
from engine.models.adapters.source import adapter_folder
from engine.models.backend import Backend, load_backend
from engine.models.templates.given import template_key
from engine.pairs.data.record import OK, PairRecord
from engine.pairs.formats.folders import hash_of_files
from engine.pairs.generation.batch_plan import BatchPlan, key_of_plan, prompts_to_make, read_plan
from engine.pairs.generation.critique_revision import make_records, plan_batches, too_long
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.prompts import Prompt, read_prompts
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.generation.superseded import carry_decisions, reusable_records
from engine.pairs.principles.constitution import DEFAULT_PATH
from engine.run.results import PairsResult
from engine.stages.base import Context, StageEnd, StageRun
from engine.stages.import_pairs import import_pairs
from engine.storage.files import sha256_of_file
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

IDS_SHOWN = 5
LEAST_ROOM = 16
"""Minimum tokens to leave for a prompt."""


READ_AS = {
    "chat_template": template_key,
    "constitution": lambda config: sha256_of_file(config.constitution or DEFAULT_PATH),
    "few_shot": lambda config: sha256_of_file(config.few_shot) if config.few_shot else None,
    "pairs": lambda config: hash_of_files(config.pairs),
    "server_url": lambda config: config.server_url is not None,
    "server_model": lambda config: config.server_model if config.server_url else None,
    "critic_url": lambda config: config.critic_url is not None,
    "critic_model": lambda config: config.critic_model if config.critic_url else None,
}


def run(context: Context) -> StageRun:
    config = context.config
    if config.pairs is not None:
        imported = yield from import_pairs(context, config.pairs.expanduser())
        yield from _carry_decisions(context)
        return imported
    recipe = GenerationSettings.of(config)
    found = read_prompts(config, context.token_text)
    prompts = found.prompts
    yield from found.bad.messages(config.dataset)
    if len(prompts) < config.num_examples:
        yield Message(
            "warning",
            f"{config.dataset} ({config.split}) has {len(prompts)} distinct prompts, not "
            f"{config.num_examples}: making pairs from those.",
        )
    identity = RecordIdentity.of(config, recipe, context.run.results)
    yield from _set_aside_what_no_longer_holds(context, prompts, identity)
    with JsonlAppender(context.run / layout.PAIRS_JSONL) as appender:
        if appender.torn:
            yield Message("warning", f"Moved an unfinished record ({appender.torn} bytes) to {appender.torn_path}.")
        recorded = Recorded.read(context.run / layout.PAIRS_JSONL)
        taken_over = yield from _take_over(context, prompts, identity, appender, recorded)
        tokens = 0
        if any(prompt.id not in recorded.ids for prompt in prompts):
            tokens = yield from _generate_missing(context, prompts, recipe, identity, appender, recorded)
    yield from _carry_decisions(context)
    return StageEnd(
        f"{recorded.ok} usable of {recorded.total} prompts ({recorded.ok / max(recorded.total, 1):.0%})",
        PairsResult(
            pairs_sha256=sha256_of_file(context.run / layout.PAIRS_JSONL),
            records=recorded.total,
            ok=recorded.ok,
            taken_over=taken_over,
            generated_tokens=tokens,
        ),
    )


def _set_aside_what_no_longer_holds(
    context: Context, prompts: list[Prompt], identity: RecordIdentity
) -> Iterator[Event]:
    """Keep `pairs.jsonl` if all of its records are still valid; else set it aside and start a new file."""
    path, wanted = context.run / layout.PAIRS_JSONL, {prompt.id: prompt for prompt in prompts}
    if not path.is_file():
        return
    total = others = 0
    for _, record in read_jsonl(path):
        if isinstance(record, BadLine):
            return  # stage quality reports it, and names the line
        prompt = wanted.get(str(record.get("id")))
        total += 1
        others += prompt is None or not identity.holds(prompt, record)
    if not others:
        return
    why = f"{others} of {total} records were made from other prompts or with other settings"
    folder = context.run.set_aside(layout.PAIRS_JSONL, layout.EDITS_JSONL, why=why)
    yield StageStale("pairs", why)
    yield Message("info", f"{why[0].upper()}{why[1:]}; the old set is now in {folder}.")


def _take_over(
    context: Context, prompts: list[Prompt], identity: RecordIdentity, appender: JsonlAppender, recorded: Recorded
) -> Generator[Event, None, int]:
    """Reuse valid records of earlier sets of this run; returns how many records exist already."""
    missing = {prompt.id: prompt for prompt in prompts if prompt.id not in recorded.ids}
    for data in reusable_records(context.run, missing, identity):
        yield _acknowledge(PairRecord(**data), appender, recorded)
        context.stop.raise_if_requested()
    if recorded.total:
        yield Message("info", f"Reusing {recorded.total} of {len(prompts)} records.")
    return recorded.total


def _generate_missing(
    context: Context,
    prompts: list[Prompt],
    recipe: GenerationSettings,
    identity: RecordIdentity,
    appender: JsonlAppender,
    recorded: Recorded,
) -> Generator[Event, None, int]:
    """Make the missing records; returns the number of generated tokens."""
    yield Message("info", _where(context))
    backend = load_backend(context.config, adapter_folder(context), context.stop, context.token_text)
    for note in backend.check(recipe.sampling):
        yield Message("warning", note)
    yield from generate_pairs(context, prompts, backend, recipe, identity, appender, recorded)
    for note in backend.warnings():
        yield Message("warning", note)
    tokens = backend.tokens
    del backend
    free_memory()
    return tokens


def _carry_decisions(context: Context) -> Iterator[Event]:
    found = carry_decisions(context.run)
    if found is None:
        return
    if found.carried:
        yield Message("info", f"Kept the decisions about {found.carried} pairs: their texts are unchanged.")
    if found.lost:
        shown = ", ".join(found.lost[:IDS_SHOWN]) + (", …" if len(found.lost) > IDS_SHOWN else "")
        yield Message(
            "warning",
            f"Dropped the decisions about {len(found.lost)} pairs: their texts changed, or they left the set ({shown}). "
            "They are still with the old set in superseded/.",
        )


def _where(context: Context) -> str:
    config = context.config
    critic = (
        f" {config.critic_model} on {config.critic_url} writes critiques and revisions." if config.critic_url else ""
    )
    if config.server_url:
        return f"{config.server_model} on {config.server_url} generates the {'drafts' if critic else 'pairs'}.{critic}"
    return f"Loading {config.base_model_id} with the Stage 2 adapter.{critic}"


@dataclass
class Recorded:
    """The records in `pairs.jsonl` so far."""

    ids: dict[str, None]
    """In the order of the file."""
    ok: int

    @property
    def total(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, path: Path) -> Recorded:
        rows = [row for _, row in read_jsonl(path) if not isinstance(row, BadLine)]
        return cls(dict.fromkeys(str(row["id"]) for row in rows), sum(row["status"] == OK for row in rows))

    def add(self, record: PairRecord) -> None:
        self.ids[record.id] = None
        self.ok += record.status == OK


def generate_pairs(
    context: Context,
    prompts: list[Prompt],
    backend: Backend,
    recipe: GenerationSettings,
    identity: RecordIdentity,
    appender: JsonlAppender,
    recorded: Recorded,
) -> Iterator[Event]:
    """Make the missing records. A partly recorded batch is generated again as a whole, because a row's text may depend, in
    its last bits, on the shape of its batch; recorded ones stay as they are.
    """
    clock = Clock(recorded.total, len(prompts))
    yield clock.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    beside = recipe.beside_the_prompt(backend)
    most = longest_prompt(context.config.max_prompt_tokens, backend.context_length, beside)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > most and prompt.id not in recorded.ids:
            record = replace(too_long(prompt, length, most), made_with=identity.key_of_too_long(prompt))
            yield _acknowledge(record, appender, recorded)
    tokens = {prompt.id: length for prompt, length in zip(prompts, lengths, strict=True) if length <= most}
    fitting = [prompt for prompt in prompts if prompt.id in tokens]
    if all(prompt.id in recorded.ids for prompt in fitting):
        return
    plan = _batch_plan(context, backend, key_of_plan(prompts, identity), recorded, max(tokens.values()) + beside)
    to_make = prompts_to_make(fitting, recorded.ids, plan)
    for batch in plan_batches(to_make, [tokens[prompt.id] for prompt in to_make], plan.batch_size):
        if all(prompt.id in recorded.ids for prompt in batch):
            continue
        for prompt, made in zip(batch, make_records(batch, backend, recipe), strict=True):
            if made.id not in recorded.ids:
                record = replace(made, made_with=identity.key(prompt), prompt_tokens=tokens[prompt.id])
                yield _acknowledge(record, appender, recorded)
        yield clock.progress(recorded, backend)
        context.stop.raise_if_requested()


def longest_prompt(max_prompt_tokens: int, context_length: int | None, beside: int) -> int:
    """The maximum tokens of a prompt: the option's limit, or what the model's context leaves for it.

    Raises PreconditionError if too little is left.
    """
    if context_length is None:
        return max_prompt_tokens
    if context_length - beside < LEAST_ROOM:
        raise PreconditionError(
            f"The model's context of {context_length} tokens has no room for a prompt: {beside} are needed for other text.",
            "Draft, critique, revision, their requests and the worked examples share one conversation with the prompt.",
            "Lower --max-new-tokens, or give fewer examples in --few-shot.",
        )
    return min(max_prompt_tokens, context_length - beside)


def _batch_plan(context: Context, backend: Backend, made_for: str, recorded: Recorded, longest: int) -> BatchPlan:
    """The plan that an earlier start wrote for this set, else a new one; also a new one for another given batch size, because
    batches of that size, cut from the whole set, could contain recorded prompts.
    """
    path, given = context.run / layout.PAIRS_PLAN, context.config.generation_batch_size
    found = read_plan(path, made_for)
    if found is not None and given in (None, found.batch_size):
        return found
    plan = BatchPlan(made_for, recorded.total, given or backend.batch_size(longest), longest)
    plan.write(path)
    return plan


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
    """Rate and remaining time, from the records that this process made."""

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
        return Progress(recorded.total, self._total, "pairs", rate, left, note)
