"""Make records in several processes: each is dealt a batch at a time, and the records are taken in the order of the batches.

The batches are those of one process, so the records are, too (in float32 on the CPU; on other devices to the last bits).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.core.events import Event
from engine.models.chat import Conversation
from engine.pairs.data.record import PairRecord
from engine.pairs.generation.identity import RecordIdentity
from engine.pairs.generation.methods import Batch, MadeBatch, MakeBatches, MakeRecords
from engine.pairs.generation.prompts import Prompt
from engine.run.folder import Run
from engine.workers.distribution import FinishedBatch, distribute
from engine.workers.pool import WorkerPool
from engine.workers.rows import earlier_rows
from engine.workers.serve import Work
from engine.workers.tasks import Task, TaskResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KIND = "pairs"


@dataclass
class WorkerModels:
    """The model that each of the processes has loaded, as this one knows it: a `ModelSizes`."""

    pool: WorkerPool
    tokenizer: PreTrainedTokenizerBase
    tokens: int = 0

    def length(self, conversation: Conversation) -> int:
        from engine.models.generation.sampling import prompt_length

        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        for told in self.pool.results([{"batch size for": longest}]):
            if isinstance(told, TaskResult):
                return int(told.facts["batch size"])
        raise AssertionError("every task has an answer")

    @property
    def context_length(self) -> int | None:
        found = self.pool.facts()["context length"]
        return None if found is None else int(found)


@dataclass(frozen=True)
class MakeInProcesses:
    """A `MakeBatches`. What an earlier start's processes left in their files is not made again."""

    models: WorkerModels
    run: Run
    identity: RecordIdentity

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Event | str | MadeBatch]:
        left = _earlier_records(self.run, self.identity, batches)
        for told in distribute(self.models.pool, batches, lambda prompt: left.get(prompt.id), self._task):
            if not isinstance(told, FinishedBatch):
                yield told
                continue
            self.models.tokens += int(told.facts.get("tokens", 0))
            yield [(prompt, PairRecord(**row)) for prompt, row in zip(told.batch, told.rows, strict=True)]

    def _task(self, batch: Batch) -> Task:
        made_with = [self.identity.key(prompt) for prompt in batch]
        return {"prompts": [vars(prompt) for prompt in batch], "made with": made_with}


def reuse_earlier_records(make: MakeBatches, run: Run, identity: RecordIdentity) -> MakeBatches:
    """One process that goes on after several: what they left in their files is not made again."""

    def make_batches(batches: Sequence[Batch]) -> Iterator[Event | str | MadeBatch]:
        left = _earlier_records(run, identity, batches)
        for batch in batches:
            if all(prompt.id in left for prompt in batch):
                yield [(prompt, PairRecord(**left[prompt.id])) for prompt in batch]
            else:
                yield from make([batch])

    return make_batches


def _earlier_records(run: Run, identity: RecordIdentity, batches: Sequence[Batch]) -> dict[str, dict[str, Any]]:
    """The records that processes of an earlier start left, by id."""
    wanted = {prompt.id: prompt for batch in batches for prompt in batch}
    return {
        row["id"]: row
        for row in earlier_rows(run, KIND)
        if (prompt := wanted.get(str(row.get("id")))) is not None and identity.can_reuse(prompt, row)
    }


def task_handler(make: MakeRecords, backend: Any) -> Work:
    """What each of the processes does with a task.

    backend   the model's, whose tokens are counted
    """

    def work(task: Task) -> Generator[str, None, TaskResult]:
        if "batch size for" in task:
            return TaskResult(facts={"batch size": backend.batch_size(task["batch size for"])})
        before = backend.tokens
        records = yield from make([Prompt(**prompt) for prompt in task["prompts"]])
        rows = [{**record.as_dict(), "made_with": key} for record, key in zip(records, task["made with"], strict=True)]
        return TaskResult(rows, {"tokens": backend.tokens - before})

    return work
