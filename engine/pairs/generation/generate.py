"""Generate a set of pairs: a file of records, each on disk before it counts. Valid records are never generated again.

Stage pairs generates the run's set (`RUN_SET`), and preflight its pilot (`PILOT_SET`), with the same code. The run reuses the
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
"""The fewest prompts per round of `generate_until`, so that the last rounds still fill batches."""
MIN_SHARE = 0.05
"""The lowest share of usable pairs that a round assumes, so that a first round without any does not draw all prompts."""
MIN_PROMPT_TOKENS = 16
"""The fewest tokens that must be left for a prompt."""


@dataclass(frozen=True)
class SetFiles:
    """The paths of a set in the run folder."""

    pairs: str
    plan: str
    companions: tuple[str, ...] = ()
    """Files that are set aside together with the pairs."""


RUN_SET = SetFiles(layout.PAIRS_JSONL, layout.PAIRS_PLAN, (layout.EDITS_JSONL,))
PILOT_SET = SetFiles(layout.PILOT_PAIRS, layout.PILOT_PLAN)


@dataclass
class RecordIndex:
    """An index of a set's records so far."""

    ids: dict[str, str]
    """Maps ids to `PairRecord.status`, in file order."""
    ok: int
    too_long: int = 0
    """Prompts that were too long for the model."""
    failed: int = 0
    """Prompts on which the server failed."""
    last_failure: str = ""
    """The server's message for the last prompt on which it failed."""

    @property
    def total(self) -> int:
        return len(self.ids)

    @property
    def attempted(self) -> int:
        """Prompts that were sent to the model."""
        return self.total - self.too_long

    @classmethod
    def read(cls, path: Path) -> RecordIndex:
        """Lines that are not records count as missing."""
        rows = [row for _, row in read_jsonl(path) if not isinstance(row, BadLine)]
        ids = {row["id"]: str(row.get("status")) for row in rows if isinstance(row.get("id"), str)}
        statuses = list(ids.values())
        failures = [str(row.get("critic_notes")) for row in rows if row.get("status") == FAILED_ON_SERVER]
        return cls(
            ids,
            ok=statuses.count(OK),
            too_long=statuses.count(PROMPT_TOO_LONG),
            failed=len(failures),
            last_failure=visible_line(failures[-1]) if failures else "",
        )

    def add(self, record: PairRecord) -> None:
        self.ids[record.id] = record.status
        self.ok += record.status == OK
        self.too_long += record.status == PROMPT_TOO_LONG
        if record.status == FAILED_ON_SERVER:
            self.failed, self.last_failure = self.failed + 1, visible_line(record.critic_notes)

    def left_out(self) -> list[tuple[str, int]]:
        """Why the other attempted prompts have no pair: (reason, count), the most frequent first."""
        return Counter(status for status in self.ids.values() if status not in (OK, PROMPT_TOO_LONG)).most_common()

    def usable_of(self, prompts: Sequence[Prompt]) -> int:
        return sum(self.ids.get(prompt.id) == OK for prompt in prompts)


@dataclass(frozen=True)
class OpenSet:
    """A set that is open for appending."""

    run: Run
    files: SetFiles
    appender: JsonlAppender
    recorded: RecordIndex

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
    """Set the file of a set aside unless all its records are still valid and the server failed on few enough prompts. Otherwise
    the prompts that failed are sent again. Nothing is deleted.

    Returns why, and where the file is now; empty if it stays.
    """
    path, wanted = run / files.pairs, {prompt.id: prompt for prompt in prompts}
    if not path.is_file():
        return ""
    total = outdated = failed = 0
    for _, record in read_jsonl(path):
        if isinstance(record, BadLine):
            return ""  # only in the pilot's file, where missing records are made again
        prompt = wanted.get(str(record.get("id")))
        total += 1
        outdated += prompt is None or not identity.matches(prompt, record)
        failed += record.get("status") == FAILED_ON_SERVER
    retry = too_many_failed(failed, total, max_failed_share)
    if not outdated and not retry:
        return ""
    why = f"{outdated} of {total} records were made from other prompts or with other settings"
    if not outdated:
        why = f"the server failed on {failed} of {total} prompts, which are sent again"
    folder = run.set_aside(files.pairs, *files.companions, why=why)
    return f"{why}; the old set is now in {folder}"


def require_few_failures(recorded: RecordIndex, config: Stage3Config) -> None:
    """Raises NetworkError if the server failed on too many prompts while it answered others."""
    if too_many_failed(recorded.failed, recorded.attempted, config.max_failed_share):
        raise NetworkError(
            f"The server failed on {recorded.failed} of {recorded.attempted} prompts and answered the others.",
            f"At most {config.max_failed_share:.0%} may fail (--max-failed-share). Last failure: {recorded.last_failure}",
            "Check the server's log. The same command sends these prompts again and keeps the rest; to continue without "
            "them, raise --max-failed-share.",
        )


def reuse_records(
    open_set: OpenSet, prompts: Sequence[Prompt], identity: RecordIdentity, stop: StopToken
) -> Generator[Event, None, int]:
    """Copy the valid records from other sets of this run. Returns the number of records the set then has."""
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
    make_batches: MakeBatches
    identity: RecordIdentity
    stop: StopToken


InterimCheck = Callable[[RecordIndex], None]
"""Called between batches; raises if continuing makes no sense."""


def generate_pairs(
    prompts: Sequence[Prompt],
    inputs: GenerationInputs,
    open_set: OpenSet,
    check: InterimCheck = lambda recorded: None,
) -> Iterator[Event]:
    """Generate the missing records. A batch that lacks some of its records is generated in full, because the shape of a batch may
    affect a row's text; existing records stay unchanged.
    """
    backend, identity, recorded = inputs.backend, inputs.identity, open_set.recorded
    meter = ProgressMeter(recorded.total, len(prompts))
    yield meter.progress(recorded, backend)
    lengths = [backend.length(prompt.messages) for prompt in prompts]
    overhead = inputs.settings.overhead_tokens(backend)
    limit = longest_prompt(inputs.config.max_prompt_tokens, backend.context_length, overhead)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > limit and prompt.id not in recorded.ids:
            record = replace(too_long_record(prompt, length, limit), method=inputs.settings.method)
            yield open_set.acknowledge(replace(record, made_with=identity.too_long_key(prompt)))
    tokens = {prompt.id: length for prompt, length in zip(prompts, lengths, strict=True) if length <= limit}
    fitting = [prompt for prompt in prompts if prompt.id in tokens]
    if all(prompt.id in recorded.ids for prompt in fitting):
        return
    made_for = plan_key(prompts, identity)
    plan = _batch_plan(inputs, open_set, made_for, max(tokens.values()) + overhead)
    to_make = prompts_to_make(fitting, recorded.ids, plan)
    check(recorded)
    batches = [
        batch
        for batch in plan_batches(to_make, [tokens[prompt.id] for prompt in to_make], plan.batch_size)
        if not all(prompt.id in recorded.ids for prompt in batch)
    ]
    for item in inputs.make_batches(batches):
        if isinstance(item, Event):
            yield item
            continue
        if isinstance(item, str):
            yield meter.progress(recorded, backend, item)
            continue
        for prompt, record in item:
            if record.id not in recorded.ids:
                key = identity.key(prompt)
                yield open_set.acknowledge(replace(record, made_with=key, prompt_tokens=tokens[record.id]))
        yield meter.progress(recorded, backend)
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
    """Draw prompts in order until `target` of them have a usable pair, or none are left.

    Works in rounds; each draws as many prompts as the share of usable pairs so far suggests. A round depends only on the
    records of earlier rounds, so a run that was killed draws the same prompts again.
    """
    for drawn in draws(prompts, open_set.recorded, target):
        yield from generate_pairs(prompts[:drawn], inputs, open_set, check)


def draws(prompts: Sequence[Prompt], recorded: RecordIndex, target: int) -> Iterator[int]:
    """Yield the total number of prompts drawn after each round. Reads `recorded` before each round."""
    drawn = 0
    while drawn < len(prompts):
        usable = recorded.usable_of(prompts[:drawn])
        if usable >= target:
            return
        share = max(usable / drawn, MIN_SHARE) if drawn else 1.0
        drawn = min(drawn + max(ceil((target - usable) / share), MIN_PROMPTS_PER_ROUND), len(prompts))
        yield drawn


def is_complete(prompts: Sequence[Prompt], recorded: RecordIndex, target: int | None) -> bool:
    """Whether nothing is left to generate. A round, once started, is always finished, even if there are enough pairs, so that a
    run that was killed ends with the same set as one that was not.
    """
    rounds = [len(prompts)] if target is None else draws(prompts, recorded, target)
    return all(prompt.id in recorded.ids for drawn in rounds for prompt in prompts[:drawn])


def require_acknowledged(path: Path, prompts: Sequence[Prompt], recorded: RecordIndex, target: int | None) -> None:
    """Raises DamagedState if the file of a finished set lacks an acknowledged record, or the record of a prompt."""
    on_disk = RecordIndex.read(path)
    missing = [pair_id for pair_id in recorded.ids if pair_id not in on_disk.ids]
    if not missing and is_complete(prompts, on_disk, target):
        return
    example = f"The first missing record is {visible_line(missing[0], 40)}. " if missing else ""
    raise DamagedState(
        f"{visible_line(str(path))} has {on_disk.total} of {max(recorded.total, on_disk.total)} records that were made.",
        f"{example}Another program changed the file while pairs were generated.",
        "Run the same command again. It generates the missing records.",
    )


def longest_prompt(max_prompt_tokens: int, context_length: int | None, overhead: int) -> int:
    """The longest prompt in tokens: at most the option, and at most the model's context minus the `overhead` of all other text.

    Raises PreconditionError if no room is left.
    """
    if context_length is None:
        return max_prompt_tokens
    if context_length - overhead < MIN_PROMPT_TOKENS:
        raise PreconditionError(
            f"The model's context of {context_length} tokens has no room for a prompt: other text needs {overhead}.",
            "Draft, critique, revision, their requests and the worked examples share one conversation with the prompt.",
            "Lower --max-new-tokens, or use fewer examples in --few-shot.",
        )
    return min(max_prompt_tokens, context_length - overhead)


def _batch_plan(inputs: GenerationInputs, open_set: OpenSet, made_for: str, longest: int) -> BatchPlan:
    """The plan that an earlier start saved for this set, else a new one. Another batch size needs a new plan, because batches of
    that size could mix prompts with and without records.
    """
    path, batch_size = open_set.run / open_set.files.plan, inputs.config.generation_batch_size
    saved = read_plan(path, made_for)
    if saved is not None and batch_size in (None, saved.batch_size):
        return saved
    plan = BatchPlan(made_for, open_set.recorded.total, batch_size or inputs.backend.batch_size(longest), longest)
    plan.write(path)
    return plan


class ProgressMeter:
    """Rate and time left, estimated from what this process generated."""

    def __init__(self, done_before: int, total: int) -> None:
        self._done_before, self._total = done_before, total
        self._started = time.monotonic()

    def progress(self, recorded: RecordIndex, backend: ModelSizes, step: str = "") -> Progress:
        seconds = time.monotonic() - self._started
        made = recorded.total - self._done_before
        rate = made / seconds if made and seconds > 0 else None
        left = (self._total - recorded.total) / rate if rate else None
        share = f"{recorded.ok / recorded.total:.0%} usable" if recorded.total else ""
        tokens = backend.tokens
        speed = f"{tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
        note = ", ".join(part for part in (step, share, speed) if part)
        return Progress(recorded.total, self._total, "pairs", rate, left, note)


def torn_line_warning(appender: JsonlAppender) -> Iterator[Message]:
    """A warning if the file ended with an unfinished line."""
    if appender.torn:
        yield Message("warning", f"Moved an unfinished record ({appender.torn} bytes) to {appender.torn_path}.")
