"""TRL's DPO trainer, adapted. Only `engine.dpo.training.trainer` imports this file, when it trains.

It avoids what the stock trainer does silently: a NaN loss logged as 0.0, a pickle with a token in every checkpoint,
partial checkpoints, rotation by file time, dropped pairs, telemetry. It computes the shared prompt once
(`engine.dpo.training.shared_prompt`), and fills each pass with pairs that fit (`engine.dpo.training.batches`).
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from engine.core import layout
from engine.core.errors import NumbersError
from engine.core.events import CheckpointSaved, Event, TrainStep
from engine.core.failpoints import failpoint
from engine.dpo.planning.forecast import HeadMethod
from engine.dpo.training.batches import Batch, StepCollator
from engine.dpo.training.checkpoints import rotate, size_of, unfinished, write_checkpoint
from engine.dpo.training.encoded_pairs import EncodedPairs
from engine.dpo.training.head import install_head
from engine.dpo.training.process_group import SINGLE_PROCESS, ProcessGroup
from engine.dpo.training.reference import Logps, collated
from engine.dpo.training.shared_prompt import share_prompt_computation
from engine.machine.device import resolve_device
from engine.models.loading import POLICY_ADAPTER

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from engine.core.config import Stage3Config

TRAINER_STATE = "trainer_state.json"
WAIT_SECONDS = 1800
"""How long a process waits for the others at the end of a step. Then it takes them for lost."""
MAX_SKIPPED_STEPS = 20
"""In float16 the loss scaler skips steps until its scale fits. More skipped steps in a row are an error."""


def build_trainer(
    config: Stage3Config,
    folder: Path,
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: EncodedPairs,
    settings: dict[str, Any],
    dtype: torch.dtype,
    fingerprint: str,
    group: ProcessGroup = SINGLE_PROCESS,
    kind: type[Stage3Trainer] | None = None,
) -> Stage3Trainer:
    """Build the trainer over `pairs` (token ids). This adds the frozen copy "ref" of the adapter "default" to `policy`.

    folder     for checkpoints
    settings   for DPOConfig. Batch size times accumulation is the effective batch. The batch size is the number of longest
               pairs that fit in memory; passes over shorter pairs take more of them
    group      the processes that train; each gets all pairs, and takes its share of each step
    kind       by default Stage3Trainer
    """
    disable_progress_bar()
    device = resolve_device(config)
    if group.world_size == 1:
        _pin_device(device)
    with without_warnings():
        trainer = (kind or Stage3Trainer)(
            model=policy,
            args=_arguments(config, folder, settings, dtype, device),
            train_dataset=Dataset(pairs.table),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.fingerprint, trainer.keep_checkpoints = fingerprint, config.save_total_limit
    trainer.group = group
    trainer.set_pass_size(settings["per_device_train_batch_size"], max(pair.tokens_read for pair in pairs))
    trainer.placement = trainer.place()
    trainer.head, trainer.why_head = install_head(policy, config)
    share_prompt_computation(policy)
    return trainer


def _pin_device(device: torch.device) -> None:
    """Otherwise accelerate takes the first GPU."""
    if device.index:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)


def _arguments(
    config: Stage3Config, folder: Path, settings: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> DPOConfig:
    # For TRL a step is one batch, which our trainer splits by length.
    whole_steps = {
        "per_device_train_batch_size": settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"],
        "gradient_accumulation_steps": 1,
    }
    arguments = DPOConfig(
        output_dir=str(folder),
        **(settings | whole_steps),
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        # All that trains takes part in every step, and nothing else of the model changes.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=WAIT_SECONDS,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # TRL refuses the data parallelism that the stock trainer would use
    return arguments


class Stage3Trainer(DPOTrainer):  # type: ignore[misc,unused-ignore]
    """TRL's trainer for pairs that are already token ids, with our checkpoints."""

    fingerprint = ""
    group = SINGLE_PROCESS
    keep_checkpoints = 2
    pairs_per_pass = 1
    """Pairs of maximum length that fit in one forward and backward pass."""
    max_tokens = 0
    """Tokens per forward pass; 0 means one pair at a time."""
    head: HeadMethod = "trl"
    why_head = ""
    """Why it is another than --head asks for, as a sentence; empty if it is not."""
    forward_in_lockstep = False
    """Whether all processes must make every forward pass at the same time, because each has a part of the weights."""
    placement = ""
    """Where the weights are, as a sentence, if that is worth telling."""
    emit: Callable[[Event], None] = staticmethod(lambda event: None)
    data_collator: Any
    """Collates one batch of pairs; the training loader builds the batches of a step with it."""

    def set_pass_size(self, pairs_per_pass: int, longest: int) -> None:
        """Every pass has room for so many pairs of the longest, in tokens; it takes more of the shorter ones."""
        self.pairs_per_pass, self.max_tokens = pairs_per_pass, pairs_per_pass * longest

    def place(self) -> str:
        """Put the weights where they are to be. Returns a sentence on it, or nothing."""
        return ""

    def use_reference_logps(self, logps: Logps) -> None:
        """Use these log-probabilities of the reference instead of the adapter "ref"."""
        chosen, rejected = zip(*logps, strict=True)
        dataset: Dataset = self.train_dataset
        dataset = dataset.add_column("ref_chosen_logps", list(chosen))
        self.train_dataset: Dataset = dataset.add_column("ref_rejected_logps", list(rejected))
        self.precompute_ref_logps = True

    def restore(self, checkpoint: Path) -> None:
        """The adapter and the figures of a checkpoint, of a training that has ended."""
        self._load_from_checkpoint(str(checkpoint), self.model)
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))

    def first_loss(self) -> float:
        """The loss on the first batch in file order, before any update."""
        model = self.model.eval()
        batch = next(collated(self.train_dataset, self.data_collator, self.pairs_per_pass, model.device))
        with torch.no_grad(), self.accelerator.autocast():  # in the precision of the steps
            loss = self.compute_loss(model, batch)
        self._metrics["eval"].clear()
        return float(loss.item())

    def get_train_dataloader(self) -> Any:
        one_batch = self.data_collator
        self.data_collator = StepCollator(one_batch, self.max_tokens, self.group)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator = one_batch
        if self.group.world_size > 1:
            # accelerate would deal out whole steps, and fill the last ones up with pairs that were trained on already. Each
            # process gets the pairs of every step instead, as one process does, and the collator takes its share.
            shards = loader.batch_sampler
            shards.num_processes, shards.process_index, shards.even_batches = 1, 0, False
        return loader

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward passes of one optimizer step. Gradient and loss are means over its pairs, in all processes."""
        batches: list[Batch] = inputs["batches"]
        loss = torch.zeros((), device=self.args.device)
        for number, (batch, size) in enumerate(zip(batches, inputs["sizes"], strict=True), start=1):
            # What Trainer divides a loss by. The gradients of the processes are averaged, so each weighs that much more.
            self.current_gradient_accumulation_steps = (
                inputs["pairs"] / (size * self.group.world_size) if size else math.inf
            )
            with self._alone(model, add_up=number == len(batches)):
                loss += super().training_step(model, batch)
            self._weigh_metrics(size * len(batches) / inputs["pairs"])
        self._add_up_metrics(len(batches))
        return loss * math.nan if failpoint("loss") else loss

    @contextmanager
    def _alone(self, model: Any, *, add_up: bool) -> Iterator[None]:
        """One pass of this process. The gradients of all are added up in the backward pass of the last one.

        TRL would collect its figures from all processes in every pass, for which each must have as many pairs. They are added up
        once instead, after the last pass.
        """
        if self.group.world_size == 1:
            yield
            return
        accelerator = self.accelerator
        accelerator.gather = accelerator.gather_for_metrics = _as_it_is
        try:
            with nullcontext() if add_up else self._gradients_kept(model):
                yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics

    def _gradients_kept(self, model: Any) -> AbstractContextManager[None]:
        """A pass after which each process keeps its gradients to itself."""
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return,unused-ignore]

    def _weigh_metrics(self, weight: float) -> None:
        # TRL logs the plain mean over forward passes, which may have different numbers of pairs.
        for name, values in self._metrics["train"].items():
            if name != "num_tokens":
                values[-1] *= weight

    def _add_up_metrics(self, passes: int) -> None:
        """The weighted figures of this step are shares of a mean: put their sums over all processes in their places."""
        if self.group.world_size == 1:
            return
        metrics = self._metrics["train"]
        names = sorted(metrics.keys() - {"num_tokens"})
        shares = [sum(metrics[name][-passes:]) / passes for name in names]
        *means, tokens = self.group.sum([*shares, float(self._total_train_tokens)], self.args.device)
        for name, mean in zip(names, means, strict=True):
            metrics[name][-passes:] = [mean] * passes
        metrics["num_tokens"] = [tokens]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # unused, and the original expects `input_ids` in a batch

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # already encoded and measured; TRL would silently drop long pairs

    def _send_telemetry(self) -> None:
        return

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL writes in place, adds a pickle that can contain the Hub token, and rotates by file time.
        folder, step = Path(self.args.output_dir), self.state.global_step
        self._require_finite_weights(step)
        if self.group.is_main:
            path = write_checkpoint(folder, step, self._fill_checkpoint, self.fingerprint)
            rotate(folder, self.keep_checkpoints)
            self.emit(CheckpointSaved(step, f"{layout.CHECKPOINTS_DIR}/{path.name}", size_of(path)))
        else:
            self._add_random_state(unfinished(folder, step))
        self.group.barrier()  # a checkpoint that one of them waits for is there for all

    def _fill_checkpoint(self, folder: Path) -> None:
        self.model.save_pretrained(
            str(folder), selected_adapters=[POLICY_ADAPTER], save_embedding_layers=False, state_dict=self._weights()
        )
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._add_random_state(folder)
        self.state.save_to_json(str(folder / TRAINER_STATE))

    def _weights(self) -> dict[str, torch.Tensor] | None:
        """What the adapter's file is made of; None for the model's own."""
        return None

    def _require_finite_weights(self, step: int) -> None:
        """A finite loss and gradient may still be followed by an update that overflows: such a checkpoint could never go on."""
        require_finite_weights(((n, p) for n, p in self.model.named_parameters() if p.requires_grad), step)

    def _add_random_state(self, folder: Path) -> None:
        """Each process has its own. Where another machine writes to a disk of its own, there is no such folder."""
        self.group.barrier()  # the first one has made the folder
        if folder.is_dir():
            self._save_rng_state(str(folder))
        self.group.barrier()  # before it reads what is in it


def _as_it_is(figure: Any) -> Any:
    return figure


class StepEvents(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Turns TRL's log of each step into an event. On a stop request, saves a checkpoint and ends training."""

    def __init__(
        self, emit: Callable[[Event], None], stop_wanted: Callable[[], bool], skipped: Callable[[], bool]
    ) -> None:
        self.emit, self.stop_wanted, self.skipped = emit, stop_wanted, skipped
        self.last, self.tokens, self.skipped_in_a_row = time.monotonic(), 0.0, 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stop_wanted():
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        if self._was_skipped(logs):
            return
        _require_finite(logs, state.global_step)
        now = time.monotonic()
        tokens = logs["num_tokens"] - self.tokens
        self.emit(
            TrainStep(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=logs["loss"],
                reward_chosen=logs["rewards/chosen"],
                reward_rejected=logs["rewards/rejected"],
                margin=logs["rewards/margins"],
                accuracy=logs["rewards/accuracies"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs["grad_norm"],
                tokens_per_second=tokens / max(now - self.last, 1e-9),
                epoch=float(state.epoch or 0.0),
            )
        )
        self.last, self.tokens = now, logs["num_tokens"]

    def _was_skipped(self, logs: dict[str, float]) -> bool:
        """Whether float16's scaler skipped this step because its gradient overflowed."""
        if math.isfinite(logs["grad_norm"]) or not math.isfinite(logs["loss"]) or not self.skipped():
            self.skipped_in_a_row = 0
            return False
        self.skipped_in_a_row += 1
        return self.skipped_in_a_row <= MAX_SKIPPED_STEPS


def _require_finite(logs: dict[str, float], step: int) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(logs[name]):
            raise NumbersError(
                f"The {name.replace('grad_norm', 'gradient norm')} is {logs[name]} at step {step}.",
                "The numbers overflowed, or the adapter was broken; training on would be useless.",
                "The last good checkpoint is kept. Use --dtype bfloat16 or float32, or a lower --learning-rate.",
            )


def require_finite_weights(weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
    """Raises NumbersError for the first of these by name that holds a number that is not finite."""
    for name, tensor in weights:
        if not bool(torch.isfinite(tensor).all()):
            raise NumbersError(
                f"{name} holds numbers that are not finite after step {step}.",
                "The update overflowed. No checkpoint was made of it.",
                "The last good checkpoint is kept. Use a lower --learning-rate, or --dtype float32.",
            )


@contextmanager
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
