"""Generate records in several worker processes. Each takes one batch at a time; the records arrive in the order of the batches.

The batches are the same as in a single process, and so are the records (in float32 on the CPU; elsewhere up to the last bits).
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
    """The `ModelSizes` of the model that each worker has loaded."""

    pool: WorkerPool
    tokenizer: PreTrainedTokenizerBase
    tokens: int = 0

    def length(self, conversation: Conversation) -> int:
        from engine.models.generation.sampling import prompt_length

        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        for item in self.pool.results([{"batch size for": longest}]):
            if isinstance(item, TaskResult):
                return int(item.facts["batch size"])
        raise AssertionError("every task has an answer")

    @property
    def context_length(self) -> int | None:
        length = self.pool.facts()["context length"]
        return None if length is None else int(length)


@dataclass(frozen=True)
class MakeInProcesses:
    """A `MakeBatches` that reuses the records in the files of an earlier start's workers."""

    models: WorkerModels
    run: Run
    identity: RecordIdentity

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Event | str | MadeBatch]:
        earlier = _earlier_records(self.run, self.identity, batches)
        for item in distribute(self.models.pool, batches, lambda prompt: earlier.get(prompt.id), self._task):
            if not isinstance(item, FinishedBatch):
                yield item
                continue
            self.models.tokens += int(item.facts.get("tokens", 0))
            yield [(prompt, PairRecord(**row)) for prompt, row in zip(item.batch, item.rows, strict=True)]

    def _task(self, batch: Batch) -> Task:
        made_with = [self.identity.key(prompt) for prompt in batch]
        return {"prompts": [vars(prompt) for prompt in batch], "made with": made_with}


def reuse_earlier_records(make: MakeBatches, run: Run, identity: RecordIdentity) -> MakeBatches:
    """`make` for a single process that continues the work of several, and reuses the records in their files."""

    def make_batches(batches: Sequence[Batch]) -> Iterator[Event | str | MadeBatch]:
        earlier = _earlier_records(run, identity, batches)
        for batch in batches:
            if all(prompt.id in earlier for prompt in batch):
                yield [(prompt, PairRecord(**earlier[prompt.id])) for prompt in batch]
            else:
                yield from make([batch])

    return make_batches


def _earlier_records(run: Run, identity: RecordIdentity, batches: Sequence[Batch]) -> dict[str, dict[str, Any]]:
    """The records in the files of an earlier start's workers, by id."""
    wanted = {prompt.id: prompt for batch in batches for prompt in batch}
    return {
        row["id"]: row
        for row in earlier_rows(run, KIND)
        if (prompt := wanted.get(str(row.get("id")))) is not None and identity.can_reuse(prompt, row)
    }


def task_handler(make: MakeRecords, backend: Any) -> Work:
    """The function with which each worker handles a task.

    backend   counts the tokens that the model generates
    """

    def work(task: Task) -> Generator[str, None, TaskResult]:
        if "batch size for" in task:
            return TaskResult(facts={"batch size": backend.batch_size(task["batch size for"])})
        before = backend.tokens
        records = yield from make([Prompt(**prompt) for prompt in task["prompts"]])
        rows = [{**record.as_dict(), "made_with": key} for record, key in zip(records, task["made with"], strict=True)]
        return TaskResult(rows, {"tokens": backend.tokens - before})

    return work
