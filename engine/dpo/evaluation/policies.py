"""The policies of Stage 2 and Stage 3 as two adapters of one model, and the evaluation tasks that they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.core import layout
from engine.core.config import Stage3Config
from engine.core.errors import NumbersError
from engine.dpo.evaluation.tasks import Results, Task
from engine.dpo.training.dataset import EncodedPair
from engine.dpo.training.reference import REFERENCE_ADAPTER, adapter_active, base_active, collated, pair_logps
from engine.machine.memory import free_memory, halve_on_oom
from engine.models.loading import POLICY_ADAPTER, load_base, load_policy, load_tokenizer, resolve_dtype, restore_adapter
from engine.models.tensors import adapter_tensors, file_tensors, hash_tensors
from engine.pairs.judges.base import LoadedPolicy
from engine.pairs.relevance.measure import Answer, RelevanceMeter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from engine.dpo.evaluation.tasks import RunTasks
    from engine.dpo.training.trainer import Trained
    from engine.run.folder import Run
    from engine.run.stop import StopToken

PLACEHOLDER_PAIR = EncodedPair(0, [0], [0], [0])
"""TRL's trainer cannot be built without a pair; nothing reads this one."""


@dataclass(frozen=True)
class Policies:
    """Both policies. TRL's trainer was built on the model."""

    model: PeftModel
    """With the adapters "default" (Stage 3) and "ref" (Stage 2)."""
    tokenizer: PreTrainedTokenizerBase
    collator: Any
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Stage3Config, trained: Trained) -> Policies:
        dtype = resolve_dtype(trained.plan.applied_to(config))
        return cls(trained.model, trained.tokenizer, trained.collator, dtype)

    @property
    def reference(self) -> LoadedPolicy:
        """The Stage 2 policy, for --judge self."""
        return LoadedPolicy(self.model, self.tokenizer, lambda: adapter_active(self.model, REFERENCE_ADAPTER))

    def run(self, task: Task, should_stop: Callable[[], bool] = lambda: False) -> Results:
        """Run one task. When `should_stop` returns True, answers end at the next token; the caller must discard them."""
        match task:
            case {"read": list(pairs)}:
                return self._log_ratios(pairs)
            case {"answer": list(prompts), "adapter": str(adapter), "settings": dict(settings)}:
                return self._answers(prompts, adapter, settings, should_stop)
            case {"relevance of": list(answers)}:
                return self._relevance(answers)
            case _:
                raise ValueError(f"unknown evaluation task: {sorted(task)}")

    def _log_ratios(self, pairs: list[dict[str, Any]]) -> Results:
        """For each pair's chosen and rejected reply, the log-probability under Stage 3 minus that under Stage 2."""
        (batch,) = collated(pairs, self.collator, len(pairs), self.model.device)
        stage3 = pair_logps(self.model, batch, POLICY_ADAPTER, self.dtype)
        stage2 = pair_logps(self.model, batch, REFERENCE_ADAPTER, self.dtype)
        chosen, rejected = ((after - before).tolist() for after, before in zip(stage3, stage2, strict=True))
        return [list(both) for both in zip(chosen, rejected, strict=True)]

    def _answers(
        self, prompts: list[Any], adapter: str, settings: Mapping[str, Any], should_stop: Callable[[], bool]
    ) -> Results:
        """Answer the prompts in one batch, which is halved whenever memory runs out."""
        from engine.models.generation.sampling import SamplingSettings, generate

        def answer(indices: Sequence[int]) -> Results:
            batch = [prompts[index] for index in indices]
            with adapter_active(self.model, adapter):
                replies = generate(
                    self.model,  # type: ignore[arg-type]
                    self.tokenizer,
                    batch,
                    SamplingSettings(**settings),
                    should_stop=should_stop,
                )
            return [asdict(reply) for reply in replies]

        return halve_on_oom(answer, range(len(prompts)), free_memory)

    def _relevance(self, answers: list[Any]) -> Results:
        meter = RelevanceMeter(self.model, self.tokenizer)  # type: ignore[arg-type]
        with base_active(self.model):
            measured = meter.measure([Answer(prompt, reply) for prompt, reply in answers])
        return [answer and answer.relevance for answer in measured]


def run_tasks_here(policies: Policies, stop: StopToken) -> RunTasks:
    """Run tasks in this process. A result that a stop cut short is not passed on."""

    def run_tasks(tasks: Sequence[Task]) -> Iterator[Results]:
        for task in tasks:
            stop.raise_if_requested()
            result = policies.run(task, lambda: stop.requested)
            stop.raise_if_requested()
            yield result

    return run_tasks


def load_policies(config: Stage3Config, run: Run, stage2: Path) -> Policies:
    """Load the policies in the state in which training leaves them, so that they give the same results. Stage 3 is the
    run's adapter.

    config   with the plan of training applied
    stage2   the folder of the Stage 2 adapter

    Raises NumbersError if the tensors in memory differ from those in the files.
    """
    from engine.dpo.training.encoded_pairs import EncodedPairs
    from engine.dpo.training.trainer import prepare_for_generation, training_settings
    from engine.dpo.training.trl_trainer import build_trainer

    tokenizer = load_tokenizer(config)
    policy = load_policy(load_base(config), stage2, trainable=True)
    dtype = resolve_dtype(config)
    pairs = EncodedPairs([PLACEHOLDER_PAIR], run.folder)
    settings = training_settings(config, len(pairs), -1)
    trainer = build_trainer(config, run / layout.CHECKPOINTS_DIR, policy, tokenizer, pairs, settings, dtype, "")
    if config.load_in_4bit:
        restore_adapter(policy, REFERENCE_ADAPTER)
    stage3 = run / layout.ADAPTER_DIR
    policy.load_adapter(str(stage3), POLICY_ADAPTER, is_trainable=True)
    _require_tensors_of(stage2, policy, REFERENCE_ADAPTER)
    _require_tensors_of(stage3, policy, POLICY_ADAPTER)
    collator = trainer.data_collator
    del trainer
    prepare_for_generation(policy)
    return Policies(policy, tokenizer, collator, dtype)


def _require_tensors_of(folder: Path, policy: PeftModel, adapter: str) -> None:
    """PEFT silently skips tensors that match no module."""
    if hash_tensors(file_tensors(folder / layout.ADAPTER_WEIGHTS)) != hash_tensors(adapter_tensors(policy, adapter)):
        raise NumbersError(
            f"The adapter in memory is not the one in {folder}.",
            "Its tensors differ from those in the file, so the wrong model would be compared.",
            "Run the same command again; if it happens again, please report it.",
        )
