"""Train on the longest pair that the limits allow, in as many processes as the run: a checkpoint, an interruption, a resume."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import DamagedState
from engine.core.events import Check, CheckpointSaved, Event, Message, Progress, TrainStep
from engine.dpo.planning.plan import TrainingPlan
from engine.machine.memory import free_memory
from engine.pairs.assessment.training_set import preference_row
from engine.pairs.data.record import Pair
from engine.run.folder import Run
from engine.run.stop import StopToken
from engine.storage.files import write_atomically
from engine.storage.jsonl import dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.dpo.training.dataset import Row
    from engine.dpo.training.trainer import Trained


STEPS = 3
"""At most two before the interruption, and one after the resume."""
UNIT = "steps rehearsed"


@dataclass(frozen=True)
class RehearsalResult:
    """Measurements of training steps on the longest pair."""

    step_seconds: float
    """Seconds of a step with one pair in each process."""
    checkpoint_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """The run's training in a folder of its own, with a checkpoint after each step."""

    config: Stage3Config
    run: Run
    """The run, which keeps the logs of processes that fail."""
    scratch: Run
    stop: StopToken
    token: str | None

    @staticmethod
    def of(config: Stage3Config, run: Run, scratch: Run, stop: StopToken, token: str | None) -> Rehearsal:
        changes = {"output_dir": scratch.folder, "save_steps": 1, "report_to": "none"}
        # The other machines do not rehearse: they wait for the run's training.
        if config.num_machines > 1:
            changes |= {"num_machines": 1, "machine_rank": 0, "num_processes": None}
        rehearsal_config = config.model_copy(update=changes)
        for stage in ("workspace", "adapter"):
            scratch.record_stage(stage, status="done", result=run.result(stage))
        return Rehearsal(rehearsal_config, run, scratch, stop, token)

    def train(self, rows: list[Row], plan: TrainingPlan) -> Generator[Event, None, Trained]:
        """Raises as `train_as_planned` does."""
        from engine.dpo.training.distributed import train_as_planned

        write_atomically(self.scratch / layout.TRAIN_JSONL, (dumps(row).encode() + b"\n" for row in rows))
        try:
            return (
                yield from train_as_planned(
                    self.config, self.scratch, rows, stop=self.stop, token=self.token, plan=plan, max_steps=STEPS
                )
            )
        except Exception:
            self._keep_logs()
            raise

    def _keep_logs(self) -> None:
        """Copy the logs that the error refers to, because the scratch folder is removed."""
        logs = self.scratch / layout.PROCESSES_DIR
        if logs.is_dir():
            shutil.copytree(logs, self.run / layout.PROCESSES_DIR, dirs_exist_ok=True)


def train_and_resume(
    rehearsal: Rehearsal, row: Row, plan: TrainingPlan, processes: int
) -> Generator[Event, None, RehearsalResult]:
    """Train under `plan`, interrupt after the first checkpoint, then resume.

    processes   number of processes on this machine

    Raises RestartNeeded or MemoryExhausted if it does not fit; then nothing in the rehearsal's folder is usable.
    """
    from engine.dpo.training.trainer import save_adapter

    config, scratch = rehearsal.config, rehearsal.scratch
    shutil.rmtree(scratch / layout.CHECKPOINTS_DIR, ignore_errors=True)
    one_pass = replace(plan, accumulation=1, processes=processes)
    rows = [row] * one_pass.effective_batch
    steps = StepTimes()
    yield Progress(0, STEPS, UNIT)
    training = rehearsal.train(rows, one_pass)
    checkpoint_bytes = yield from steps.until_checkpoint(training)
    training.close()  # like an interruption: the current step finishes and is saved
    where = f" in each of {processes} processes" if processes > 1 else ""
    yield Check(
        "training step", "ok", f"on {plan.micro_batch} × {config.max_length} tokens{where}, loss starts at ln 2"
    )
    yield Check("checkpoint", "ok", f"{checkpoint_bytes / 1e6:.1f} MB")
    free_memory()
    trained = yield from steps.until_end(rehearsal.train(rows, one_pass))
    if trained.resumed_from is None:
        raise DamagedState(
            "The rehearsal did not resume from its checkpoint.",
            "An interrupted run would start from the beginning.",
            "See logs/run.log, then run the same command again.",
        )
    yield Check("resume", "ok", f"resumed from step {trained.resumed_from}")
    save_adapter(trained, scratch / "models/lora_adapters", base_name=config.base_model_id, base_revision=None)
    peak = trained.peak_bytes
    del trained
    free_memory()
    return RehearsalResult(min(steps.seconds) / plan.micro_batch, checkpoint_bytes, peak)


class StepTimes:
    """Times the steps of the rehearsal. The first is slower than the others; the fastest is closest to those of a long run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.monotonic()

    def _time(self, event: Event) -> Iterator[Progress]:
        now = time.monotonic()
        if isinstance(event, TrainStep):
            self.seconds.append(now - self._last)
            yield Progress(event.step, STEPS, UNIT)
        self._last = now

    def until_checkpoint(self, training: Iterator[Event]) -> Generator[Event, None, int]:
        """Run to the first checkpoint. Returns its size in bytes."""
        for event in training:
            yield from self._time(event)
            if isinstance(event, CheckpointSaved):
                return event.bytes
        raise DamagedState(
            "The rehearsal ended without a checkpoint.",
            "An interrupted run would start from the beginning.",
            "See logs/run.log, then run the same command again.",
        )

    def until_end(self, training: Generator[Event, None, Trained]) -> Generator[Event, None, Trained]:
        """Run to the end, and pass on only warnings and progress, because its steps are not those of the run."""
        while True:
            try:
                event = next(training)
            except StopIteration as end:
                return cast("Trained", end.value)
            yield from self._time(event)
            if isinstance(event, Message) and event.level == "warning":
                yield event


def longest_row(record: Pair, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    """The pair, with its words repeated until prompt and reply (almost) fill `max_length` tokens."""
    from engine.dpo.training.dataset import measure_lengths

    vocabulary = (record.revised_response or record.base_response).split() or ["word"]

    def row(words: int) -> Row:
        reply = [vocabulary[i % len(vocabulary)] for i in range(words)]
        # The punctuation keeps the replies different even if they repeat a single word.
        pair = Pair(
            id=record.id,
            prompt=record.prompt,
            messages=record.messages,
            base_response=" ".join(reversed(reply)) + "!",
            revised_response=" ".join(reply) + ".",
        )
        return cast("Row", preference_row(pair))

    low, high = 1, max_length
    while low < high:  # the largest number of words that fits
        middle = (low + high + 1) // 2
        if measure_lengths([row(middle)], tokenizer)[0] <= max_length:
            low = middle
        else:
            high = middle - 1
    return row(low)
