"""Generate a set of pairs: a file of records, each on disk before it counts. Valid records are never generated again.

Stage pairs generates the run's set (`RUN_SET`) and preflight its pilot (`PILOT_SET`) with the same code; the run reuses the
pilot's records.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import DamagedState, NetworkError, PreconditionError
from engine.core.events import Event, Message, PairFailed, PairMade, Progress
from engine.models.backend import ModelSizes
from engine.models.server.errors import too_many_failed
from engine.pairs.data.record import FAILED_ON_SERVER, OK, PairRecord
from engine.pairs.detectors import PROMPT_TOO_LONG
from engine.pairs.generation.batch_plan import BatchPlan, plan_key, prompts_to_make, read_plan
from engine.pairs.generation.critique_revision import plan_batches, too_long_record
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import MakeBatches
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.pairs.generation.superseded import reusable_records
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.security.sanitize import visible_line
from engine.storage.jsonl import BadLine, JsonlAppender, read_jsonl

MIN_PROMPTS_PER_ROUND = 16
"""Fewest prompts per round of `generate_until`, so that the last rounds still fill batches."""
MIN_SHARE = 0.05
"""Lowest share of usable pairs that a round assumes, so that a first round without any does not draw everything."""
MIN_PROMPT_TOKENS = 16
"""Fewest tokens that must be left for a prompt."""


@dataclass(frozen=True)
class SetFiles:
    """Paths of a set in the run folder."""

    pairs: str
    plan: str
    beside: tuple[str, ...] = ()
    """Files that are set aside together with it."""


RUN_SET = SetFiles(layout.PAIRS_JSONL, layout.PAIRS_PLAN, (layout.EDITS_JSONL,))
PILOT_SET = SetFiles(layout.PILOT_PAIRS, layout.PILOT_PLAN)


@dataclass
class Recorded:
    """The records of a set so far."""

    ids: dict[str, str]
    """Maps ids to `PairRecord.status`, in file order."""
    ok: int
    too_long: int = 0
    """Prompts that were not given to the model."""
    failed: int = 0
    """Prompts at which the server failed."""
    why_failed: str = ""
    """What it said at the last of them."""

    @property
    def total(self) -> int:
        return len(self.ids)

    @property
    def asked(self) -> int:
        """Prompts that were given to the model."""
        return self.total - self.too_long

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """A line that is no record of ours counts as missing."""
        rows = [row for _, row in read_jsonl(path) if not isinstance(row, BadLine)]
        ids = {row["id"]: str(row.get("status")) for row in rows if isinstance(row.get("id"), str)}
        statuses = list(ids.values())
        why = [str(row.get("critic_notes")) for row in rows if row.get("status") == FAILED_ON_SERVER]
        return cls(
            ids, statuses.count(OK), statuses.count(PROMPT_TOO_LONG), len(why), visible_line(why[-1]) if why else ""
        )

    def add(self, record: PairRecord) -> None:
        self.ids[record.id] = record.status
        self.ok += record.status == OK
        self.too_long += record.status == PROMPT_TOO_LONG
        if record.status == FAILED_ON_SERVER:
            self.failed, self.why_failed = self.failed + 1, visible_line(record.critic_notes)

    def left_out(self) -> list[tuple[str, int]]:
        """Why there is no pair of the others that were asked, the most frequent reason first."""
        return Counter(status for status in self.ids.values() if status not in (OK, PROMPT_TOO_LONG)).most_common()

    def usable_of(self, prompts: Sequence[Prompt]) -> int:
        return sum(self.ids.get(prompt.id) == OK for prompt in prompts)


@dataclass(frozen=True)
class OpenSet:
    """A set open for appending."""

    run: Run
    files: SetFiles
    appender: JsonlAppender
    recorded: Recorded

    def acknowledge(self, record: PairRecord) -> PairMade | PairFailed:
        """Write a record, count it, and return its event."""
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


def set_aside_outdated(
    run: Run, files: SetFiles, prompts: Sequence[Prompt], identity: RecordIdentity, max_failed_share: float
) -> str:
    """Set the file of a set aside unless every record in it is still valid, and the server did not fail at too many prompts:
    these are asked again. Nothing is deleted.

    Returns why, and where it is now; empty if it stays.
    """
    path, wanted = run / files.pairs, {prompt.id: prompt for prompt in prompts}
    if not path.is_file():
        return ""
    total = others = failed = 0
    for _, record in read_jsonl(path):
        if isinstance(record, BadLine):
            return ""  # of the pilot: what it does not have is made again
        prompt = wanted.get(str(record.get("id")))
        total += 1
        others += prompt is None or not identity.matches(prompt, record)
        failed += record.get("status") == FAILED_ON_SERVER
    again = too_many_failed(failed, total, max_failed_share)
    if not others and not again:
        return ""
    why = f"{others} of {total} records were made from other prompts or with other settings"
    if not others:
        why = f"the server failed at {failed} of {total} prompts, which are asked again"
    folder = run.set_aside(files.pairs, *files.beside, why=why)
    return f"{why}; the old set is now in {folder}"


def require_few_failures(recorded: Recorded, config: Stage3Config) -> None:
    """Raises NetworkError if the server failed at too many prompts while it answered others."""
    if too_many_failed(recorded.failed, recorded.asked, config.max_failed_share):
        raise NetworkError(
            f"The server failed at {recorded.failed} of {recorded.asked} prompts, and answered the others.",
            f"At most {config.max_failed_share:.0%} may fail (--max-failed-share). The last time: {recorded.why_failed}",
            "Look at the server's log. The same command asks these prompts again and keeps the rest; a higher "
            "--max-failed-share goes on without them.",
        )


def reuse_records(
    open_set: OpenSet, prompts: Sequence[Prompt], identity: RecordIdentity, stop: StopToken
) -> Generator[Event, None, int]:
    """Copy the valid records of other sets of this run. Returns how many records the set then has."""
    recorded = open_set.recorded
    missing = {prompt.id: prompt for prompt in prompts if prompt.id not in recorded.ids}
    for data in reusable_records(open_set.run, missing, identity, excluding=open_set.files.pairs):
        yield open_set.acknowledge(PairRecord(**data))
        stop.raise_if_requested()
    return recorded.total


@dataclass(frozen=True)
class GenerationInputs:
    """Everything needed to generate records."""

    config: Stage3Config
    backend: ModelSizes
    settings: GenerationSettings
    make: MakeBatches
    identity: RecordIdentity
    stop: StopToken


InterimCheck = Callable[[Recorded], None]
"""Called between batches; raises if continuing makes no sense."""


def generate_pairs(
    prompts: Sequence[Prompt],
    inputs: GenerationInputs,
    open_set: OpenSet,
    check: InterimCheck = lambda recorded: None,
) -> Iterator[Event]:
    """Generate the missing records. A batch with some records missing is generated whole, because the shape of a batch may affect
    a row's text; existing records stay unchanged.
    """
    backend, identity, recorded = inputs.backend, inputs.identity, open_set.recorded
    clock = ProgressMeter(recorded.total, len(prompts))
    yield clock.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    beside = inputs.settings.overhead_tokens(backend)
    most = longest_prompt(inputs.config.max_prompt_tokens, backend.context_length, beside)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > most and prompt.id not in recorded.ids:
            record = replace(too_long_record(prompt, length, most), method=inputs.settings.method)
            yield open_set.acknowledge(replace(record, made_with=identity.key_of_too_long(prompt)))
    tokens = {prompt.id: length for prompt, length in zip(prompts, lengths, strict=True) if length <= most}
    fitting = [prompt for prompt in prompts if prompt.id in tokens]
    if all(prompt.id in recorded.ids for prompt in fitting):
        return
    made_for = plan_key(prompts, identity)
    plan = _batch_plan(inputs, open_set, made_for, max(tokens.values()) + beside)
    to_make = prompts_to_make(fitting, recorded.ids, plan)
    check(recorded)
    batches = [
        batch
        for batch in plan_batches(to_make, [tokens[prompt.id] for prompt in to_make], plan.batch_size)
        if not all(prompt.id in recorded.ids for prompt in batch)
    ]
    for told in inputs.make(batches):
        if isinstance(told, Event):
            yield told
            continue
        if isinstance(told, str):
            yield clock.progress(recorded, backend, told)
            continue
        for batch_prompt, made in told:
            if made.id not in recorded.ids:
                key = identity.key(batch_prompt)
                yield open_set.acknowledge(replace(made, made_with=key, prompt_tokens=tokens[made.id]))
        yield clock.progress(recorded, backend)
        inputs.stop.raise_if_requested()
        require_few_failures(recorded, inputs.config)
        check(recorded)


def generate_until(
    prompts: Sequence[Prompt],
    inputs: GenerationInputs,
    open_set: OpenSet,
    target: int,
    check: InterimCheck = lambda recorded: None,
) -> Iterator[Event]:
    """Draw prompts in order until `target` of them gave a usable pair, or none are left.

    Works in rounds; each draws as many prompts as the share of usable pairs so far suggests. A round depends only on the
    records of earlier rounds, so a killed run draws the same prompts again.
    """
    for drawn in draws(prompts, open_set.recorded, target):
        yield from generate_pairs(prompts[:drawn], inputs, open_set, check)


def draws(prompts: Sequence[Prompt], recorded: Recorded, target: int) -> Iterator[int]:
    """Yield the total number of prompts drawn after each round. Reads `recorded` anew for each round."""
    drawn = 0
    while drawn < len(prompts):
        usable = recorded.usable_of(prompts[:drawn])
        if usable >= target:
            return
        share = max(usable / drawn, MIN_SHARE) if drawn else 1.0
        drawn = min(drawn + max(ceil((target - usable) / share), MIN_PROMPTS_PER_ROUND), len(prompts))
        yield drawn


def is_complete(prompts: Sequence[Prompt], recorded: Recorded, target: int | None) -> bool:
    """Whether nothing is left to generate. A started round is always finished, even if there are enough pairs, so that a killed
    run ends with the same set as one that was not.
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
    """Longest prompt in tokens: limited by the option and by the model's context, minus everything `beside` the prompt.

    Raises PreconditionError if no room is left.
    """
    if context_length is None:
        return max_prompt_tokens
    if context_length - beside < MIN_PROMPT_TOKENS:
        raise PreconditionError(
            f"The model's context of {context_length} tokens has no room for a prompt: other text needs {beside}.",
            "Draft, critique, revision, their requests and the worked examples share one conversation with the prompt.",
            "Lower --max-new-tokens, or give fewer examples in --few-shot.",
        )
    return min(max_prompt_tokens, context_length - beside)


def _batch_plan(inputs: GenerationInputs, open_set: OpenSet, made_for: str, longest: int) -> BatchPlan:
    """The plan that an earlier start saved for this set, else a new one. A new batch size also needs a new plan, because batches
    of that size could mix prompts with and without records.
    """
    path, given = open_set.run / open_set.files.plan, inputs.config.generation_batch_size
    found = read_plan(path, made_for)
    if found is not None and given in (None, found.batch_size):
        return found
    plan = BatchPlan(made_for, open_set.recorded.total, given or inputs.backend.batch_size(longest), longest)
    plan.write(path)
    return plan


class ProgressMeter:
    """Rate and time left, based on what this process generated."""

    def __init__(self, already: int, total: int) -> None:
        self._already, self._total = already, total
        self._started = time.monotonic()

    def progress(self, recorded: Recorded, backend: ModelSizes, step: str = "") -> Progress:
        seconds = time.monotonic() - self._started
        made = recorded.total - self._already
        rate = made / seconds if made and seconds > 0 else None
        left = (self._total - recorded.total) / rate if rate else None
        share = f"{recorded.ok / recorded.total:.0%} usable" if recorded.total else ""
        tokens = backend.tokens
        speed = f"{tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
        note = ", ".join(part for part in (step, share, speed) if part)
        return Progress(recorded.total, self._total, "pairs", rate, left, note)


def torn_line_warning(appender: JsonlAppender) -> Iterator[Message]:
    """A warning if the file ended in an unfinished line."""
    if appender.torn:
        yield Message("warning", f"Moved an unfinished record ({appender.torn} bytes) to {appender.torn_path}.")
