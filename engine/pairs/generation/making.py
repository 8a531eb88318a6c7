"""A set of pairs in the making: one file of records, each on disk before it is counted; what holds already is not made again.

Stage pairs makes the run's set (`RUN_SET`), preflight the set of its pilot (`PILOT_SET`), by the same code: what the pilot made is
taken over into the run's set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from engine.core import layout
from engine.core.errors import DamagedState, PreconditionError
from engine.core.events import Event, Message, PairFailed, PairMade, Progress
from engine.models.backend import Backend
from engine.pairs.data.record import OK, PairRecord
from engine.pairs.detectors import PROMPT_TOO_LONG
from engine.pairs.generation.batch_plan import BatchPlan, key_of_plan, prompts_to_make, read_plan
from engine.pairs.generation.critique_revision import plan_batches, too_long
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import MakeRecords
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.recipe import GenerationSettings
from engine.pairs.generation.superseded import reusable_records
from engine.run.context import Context
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

LEAST_DRAWN = 16
"""Prompts of a round of `generate_until`, so that the last rounds are batches."""
LEAST_SHARE = 0.05
"""Of usable pairs, that a round of it reckons with: a first round without any must not draw without end."""
LEAST_ROOM = 16
"""Tokens that must be left to a prompt."""


@dataclass(frozen=True)
class SetFiles:
    """Where a set is, in the run folder."""

    pairs: str
    plan: str
    beside: tuple[str, ...] = ()
    """What is set aside with it, when it no longer holds."""


RUN_SET = SetFiles(layout.PAIRS_JSONL, layout.PAIRS_PLAN, (layout.EDITS_JSONL,))
PILOT_SET = SetFiles(layout.PILOT_PAIRS, layout.PILOT_PLAN)


@dataclass
class Recorded:
    """What the file of a set has so far."""

    ids: dict[str, str]
    """With what became of each (`PairRecord.status`), in the order of the file."""
    ok: int
    too_long: int = 0
    """Prompts that the model was not asked."""

    @property
    def total(self) -> int:
        return len(self.ids)

    @property
    def asked(self) -> int:
        """Prompts that the model answered, well or not."""
        return self.total - self.too_long

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """A line that is no record of ours counts as missing: stage quality names it."""
        rows = [row for _, row in read_jsonl(path) if not isinstance(row, BadLine)]
        ids = {row["id"]: str(row.get("status")) for row in rows if isinstance(row.get("id"), str)}
        statuses = list(ids.values())
        return cls(ids, statuses.count(OK), statuses.count(PROMPT_TOO_LONG))

    def add(self, record: PairRecord) -> None:
        self.ids[record.id] = record.status
        self.ok += record.status == OK
        self.too_long += record.status == PROMPT_TOO_LONG

    def usable_of(self, prompts: Sequence[Prompt]) -> int:
        return sum(self.ids.get(prompt.id) == OK for prompt in prompts)


@dataclass(frozen=True)
class OpenSet:
    """A set that is being added to."""

    files: SetFiles
    appender: JsonlAppender
    recorded: Recorded

    def acknowledge(self, record: PairRecord) -> PairMade | PairFailed:
        """Write a record and count it; the event that tells of it."""
        self.appender.append(record.as_dict())
        self.recorded.add(record)
        return event_of(record)


def event_of(record: PairRecord) -> PairMade | PairFailed:
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


def set_aside_what_no_longer_holds(
    context: Context, files: SetFiles, prompts: Sequence[Prompt], identity: RecordIdentity
) -> str:
    """Keep the file of a set if each of its records is wanted as it is; else begin a new one. Nothing is deleted.

    Returns why it was set aside, and where it is; empty where it stays.
    """
    path, wanted = context.run / files.pairs, {prompt.id: prompt for prompt in prompts}
    if not path.is_file():
        return ""
    total = others = 0
    for _, record in read_jsonl(path):
        if isinstance(record, BadLine):
            return ""  # stage quality reports it, and names the line
        prompt = wanted.get(str(record.get("id")))
        total += 1
        others += prompt is None or not identity.holds(prompt, record)
    if not others:
        return ""
    why = f"{others} of {total} records were made from other prompts or with other settings"
    folder = context.run.set_aside(files.pairs, *files.beside, why=why)
    return f"{why}; the old set is now in {folder}"


def take_over(
    context: Context, open_set: OpenSet, prompts: Sequence[Prompt], identity: RecordIdentity
) -> Generator[Event, None, int]:
    """Take the records over that another set of this run has; returns how many records were there already."""
    recorded = open_set.recorded
    missing = {prompt.id: prompt for prompt in prompts if prompt.id not in recorded.ids}
    for data in reusable_records(context.run, missing, identity, but_not=open_set.files.pairs):
        yield open_set.acknowledge(PairRecord(**data))
        context.stop.raise_if_requested()
    return recorded.total


@dataclass(frozen=True)
class Maker:
    """What makes the records, and by which settings."""

    backend: Backend
    recipe: GenerationSettings
    make: MakeRecords
    identity: RecordIdentity


Look = Callable[[Recorded], None]
"""Called between two batches; raises if it makes no sense to go on."""


def generate_pairs(
    context: Context,
    prompts: Sequence[Prompt],
    maker: Maker,
    open_set: OpenSet,
    look: Look = lambda recorded: None,
) -> Iterator[Event]:
    """Make what is not recorded yet. A batch of which some records are there is made again whole, because a row's text
    may depend, in its last bits, on the shape of its batch; what is there already stays as it is.
    """
    backend, identity, recorded = maker.backend, maker.identity, open_set.recorded
    clock = Clock(recorded.total, len(prompts))
    yield clock.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    beside = maker.recipe.beside_the_prompt(backend)
    most = longest_prompt(context.config.max_prompt_tokens, backend.context_length, beside)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > most and prompt.id not in recorded.ids:
            record = replace(too_long(prompt, length, most), method=maker.recipe.method)
            yield open_set.acknowledge(replace(record, made_with=identity.key_of_too_long(prompt)))
    tokens = {prompt.id: length for prompt, length in zip(prompts, lengths, strict=True) if length <= most}
    fitting = [prompt for prompt in prompts if prompt.id in tokens]
    if all(prompt.id in recorded.ids for prompt in fitting):
        return
    made_for = key_of_plan(prompts, identity)
    plan = _batch_plan(context, open_set, backend, made_for, max(tokens.values()) + beside)
    to_make = prompts_to_make(fitting, recorded.ids, plan)
    look(recorded)
    for batch in plan_batches(to_make, [tokens[prompt.id] for prompt in to_make], plan.batch_size):
        if all(prompt.id in recorded.ids for prompt in batch):
            continue
        for prompt, made in zip(batch, maker.make(batch), strict=True):
            if made.id not in recorded.ids:
                record = replace(made, made_with=identity.key(prompt), prompt_tokens=tokens[prompt.id])
                yield open_set.acknowledge(record)
        yield clock.progress(recorded, backend)
        context.stop.raise_if_requested()
        look(recorded)


def generate_until(
    context: Context,
    prompts: Sequence[Prompt],
    maker: Maker,
    open_set: OpenSet,
    target: int,
    look: Look = lambda recorded: None,
) -> Iterator[Event]:
    """Draw prompts, in their order, until `target` of them gave a usable pair, or none are left.

    In rounds: each draws as many as the share so far says are needed. What a round draws follows from the records of the
    rounds before, so that a run that was killed draws the same.
    """
    for drawn in draws(prompts, open_set.recorded, target):
        yield from generate_pairs(context, prompts[:drawn], maker, open_set, look)


def draws(prompts: Sequence[Prompt], recorded: Recorded, target: int) -> Iterator[int]:
    """How many prompts are drawn after each round; the records of a round are looked at when the next one is asked for."""
    drawn = 0
    while drawn < len(prompts):
        usable = recorded.usable_of(prompts[:drawn])
        if usable >= target:
            return
        share = max(usable / drawn, LEAST_SHARE) if drawn else 1.0
        drawn = min(drawn + max(ceil((target - usable) / share), LEAST_DRAWN), len(prompts))
        yield drawn


def is_complete(prompts: Sequence[Prompt], recorded: Recorded, target: int | None) -> bool:
    """Whether nothing is left to make. A round that was begun is finished, although there may be enough already: so a run
    that was killed ends with what one that was not has.
    """
    rounds = [len(prompts)] if target is None else draws(prompts, recorded, target)
    return all(prompt.id in recorded.ids for drawn in rounds for prompt in prompts[:drawn])


def require_acknowledged(path: Path, prompts: Sequence[Prompt], recorded: Recorded, target: int | None) -> None:
    """Raises DamagedState if the file of a set that is done lacks a record that was acknowledged, or one of a prompt."""
    there = Recorded.read(path)
    missing = [pair_id for pair_id in recorded.ids if pair_id not in there.ids]
    if not missing and is_complete(prompts, there, target):
        return
    named = f"The first that is missing is {visible_line(missing[0], 40)}. " if missing else ""
    raise DamagedState(
        f"{visible_line(str(path))} has {there.total} of {max(recorded.total, there.total)} records that were made.",
        f"{named}Something else changed the file while pairs were made.",
        "Run the same command again: what is missing is made again.",
    )


def longest_prompt(max_prompt_tokens: int, context_length: int | None, beside: int) -> int:
    """The most tokens of a prompt: what the option allows, and what leaves the model room for all that comes beside it.

    Raises PreconditionError if nothing is left.
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


def _batch_plan(context: Context, open_set: OpenSet, backend: Backend, made_for: str, longest: int) -> BatchPlan:
    """The plan that an earlier start wrote for this set, else a new one. Where another batch size was given, too: batches of
    that size, cut from the whole set, could hold prompts that have their records.
    """
    path, given = context.run / open_set.files.plan, context.config.generation_batch_size
    found = read_plan(path, made_for)
    if found is not None and given in (None, found.batch_size):
        return found
    plan = BatchPlan(made_for, open_set.recorded.total, given or backend.batch_size(longest), longest)
    plan.write(path)
    return plan


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
        return Progress(recorded.total, self._total, "pairs", rate, left, note)


def torn_line(appender: JsonlAppender) -> Iterator[Message]:
    """What a person should know of a file whose last line was not finished."""
    if appender.torn:
        yield Message("warning", f"Moved an unfinished record ({appender.torn} bytes) to {appender.torn_path}.")
