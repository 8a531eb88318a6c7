"""TRL's DPO trainer, adapted. Only `engine.dpo.training.trainer` imports this file, when it trains.

It avoids what the stock trainer does silently: log a NaN loss as 0.0, put a pickle with a token into every checkpoint,
leave partial checkpoints, rotate by file time, drop pairs, send telemetry. It reads a shared prompt once
(`engine.dpo.training.shared_prompt`), and fills each pass with as many pairs as fit (`engine.dpo.training.batches`).
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
from engine.dpo.training.checkpoints import partial_path, rotate, size_of, write_checkpoint
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
"""How long a process waits for the others in a collective operation before it considers them lost."""
MAX_SKIPPED_STEPS = 20
"""In float16, the loss scaler skips steps until its scale fits. More skipped steps in a row are an error."""


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
    trainer_class: type[Stage3Trainer] | None = None,
) -> Stage3Trainer:
    """Build the trainer over `pairs` (token ids). This adds the frozen copy "ref" of the adapter "default" to `policy`.

    folder          for checkpoints
    settings        for DPOConfig. Batch size times accumulation is the effective batch. The batch size is the number of
                    pairs of maximum length that fit in memory; passes over shorter pairs contain more of them
    group           the processes that train; each gets all pairs, and takes its share of each step
    trainer_class   by default Stage3Trainer
    """
    disable_progress_bar()
    device = resolve_device(config)
    if group.world_size == 1:
        _pin_device(device)
    with without_warnings():
        trainer = (trainer_class or Stage3Trainer)(
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
    trainer.placement = trainer.place_weights()
    trainer.head, trainer.why_head = install_head(policy, config)
    share_prompt_computation(policy)
    return trainer


def _pin_device(device: torch.device) -> None:
    """Without this, accelerate uses the first GPU."""
    if device.index:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)


def _arguments(
    config: Stage3Config, folder: Path, settings: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> DPOConfig:
    # For TRL, a step is a single batch, which our trainer splits by length.
    one_batch_per_step = {
        "per_device_train_batch_size": settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"],
        "gradient_accumulation_steps": 1,
    }
    arguments = DPOConfig(
        output_dir=str(folder),
        **(settings | one_batch_per_step),
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
        # Every trainable parameter gets a gradient in every step, and no buffer changes.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=WAIT_SECONDS,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # TRL raises an error for the DataParallel that Trainer would use
    return arguments


class Stage3Trainer(DPOTrainer):  # type: ignore[misc,unused-ignore]
    """TRL's trainer for pairs that are already tokenized, with our checkpoints."""

    fingerprint = ""
    group = SINGLE_PROCESS
    keep_checkpoints = 2
    pairs_per_pass = 1
    """Pairs of maximum length that fit in one forward and backward pass."""
    max_tokens = 0
    """Maximum tokens per forward pass; 0 means one pair at a time."""
    head: HeadMethod = "trl"
    why_head = ""
    """Why the head differs from --head, as a sentence; empty if it does not."""
    forward_in_lockstep = False
    """Whether all processes must run each forward pass together, because each has only a shard of the weights."""
    placement = ""
    """Where the weights are, as a sentence; empty if they are simply on the device."""
    emit: Callable[[Event], None] = staticmethod(lambda event: None)
    data_collator: Any
    """Collates one batch of pairs; the training data loader uses it for each batch of a step."""

    def set_pass_size(self, pairs_per_pass: int, longest: int) -> None:
        """Limit each pass to the tokens of `pairs_per_pass` pairs of `longest` tokens; more pairs fit if they are shorter."""
        self.pairs_per_pass, self.max_tokens = pairs_per_pass, pairs_per_pass * longest

    def place_weights(self) -> str:
        """Move the weights to where training needs them. Returns a sentence about it, or an empty string."""
        return ""

    def use_reference_logps(self, logps: Logps) -> None:
        """Use these log-probabilities of the reference instead of the adapter "ref"."""
        chosen, rejected = zip(*logps, strict=True)
        dataset: Dataset = self.train_dataset
        dataset = dataset.add_column("ref_chosen_logps", list(chosen))
        self.train_dataset: Dataset = dataset.add_column("ref_rejected_logps", list(rejected))
        self.precompute_ref_logps = True

    def restore(self, checkpoint: Path) -> None:
        """Load the adapter and the log of a checkpoint, without its optimizer: training is complete."""
        self._load_from_checkpoint(str(checkpoint), self.model)
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))

    def first_loss(self) -> float:
        """The loss on the first batch in file order, before any update."""
        model = self.model.eval()
        batch = next(collated(self.train_dataset, self.data_collator, self.pairs_per_pass, model.device))
        with torch.no_grad(), self.accelerator.autocast():  # in the precision of training steps
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
            # accelerate would distribute entire steps, and pad the last ones with pairs that were already used. Instead, each
            # process loads the pairs of every step, like a single process, and the collator takes its share.
            sampler = loader.batch_sampler
            sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False
        return loader

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward passes of one optimizer step. Gradient and loss are means over its pairs in all processes."""
        batches: list[Batch] = inputs["batches"]
        loss = torch.zeros((), device=self.args.device)
        for number, (batch, size) in enumerate(zip(batches, inputs["sizes"], strict=True), start=1):
            # Trainer divides the loss by this. The processes' gradients are averaged, hence the factor world_size.
            self.current_gradient_accumulation_steps = (
                inputs["pairs"] / (size * self.group.world_size) if size else math.inf
            )
            with self._local_pass(model, reduce_gradients=number == len(batches)):
                loss += super().training_step(model, batch)
            self._weight_metrics(size * len(batches) / inputs["pairs"])
        self._reduce_metrics(len(batches))
        return loss * math.nan if failpoint("loss") else loss

    @contextmanager
    def _local_pass(self, model: Any, *, reduce_gradients: bool) -> Iterator[None]:
        """A pass without communication. The backward pass of a step's last one reduces the gradients over all processes.

        TRL would gather its metrics from all processes in every pass, which needs the same number of pairs in each. They
        are reduced once per step instead, after the last pass.
        """
        if self.group.world_size == 1:
            yield
            return
        accelerator = self.accelerator
        accelerator.gather = accelerator.gather_for_metrics = _identity
        try:
            with nullcontext() if reduce_gradients else self._no_gradient_sync(model):
                yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics

    def _no_gradient_sync(self, model: Any) -> AbstractContextManager[None]:
        """Backward passes that accumulate gradients locally."""
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return,unused-ignore]

    def _weight_metrics(self, weight: float) -> None:
        # TRL logs the unweighted mean over forward passes, which may have different numbers of pairs.
        for name, values in self._metrics["train"].items():
            if name != "num_tokens":
                values[-1] *= weight

    def _reduce_metrics(self, passes: int) -> None:
        """Replace this step's weighted metrics, which are parts of a mean, with their sums over all processes."""
        if self.group.world_size == 1:
            return
        metrics = self._metrics["train"]
        names = sorted(metrics.keys() - {"num_tokens"})
        parts = [sum(metrics[name][-passes:]) / passes for name in names]
        *means, tokens = self.group.sum([*parts, float(self._total_train_tokens)], self.args.device)
        for name, mean in zip(names, means, strict=True):
            metrics[name][-passes:] = [mean] * passes
        metrics["num_tokens"] = [tokens]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # unused; Trainer's own expects `input_ids` in a batch

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # already tokenized and filtered; TRL would silently drop long pairs

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
            self._add_random_state(partial_path(folder, step))
        self.group.barrier()  # no process continues before the checkpoint exists

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
        """The tensors for the adapter's file; None for those of the model."""
        return None

    def _require_finite_weights(self, step: int) -> None:
        """Even after a finite loss and gradient, the update may overflow. Such a checkpoint could never be resumed."""
        require_finite_weights(((n, p) for n, p in self.model.named_parameters() if p.requires_grad), step)

    def _add_random_state(self, folder: Path) -> None:
        """Save this process's random state. The folder does not exist on a machine that has no shared disk."""
        self.group.barrier()  # rank 0 has created the folder
        if folder.is_dir():
            self._save_rng_state(str(folder))
        self.group.barrier()  # rank 0 hashes the files next


def _identity(value: Any) -> Any:
    return value


class StepEvents(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Turns TRL's log of each step into an event. If a stop is requested, saves a checkpoint and ends training."""

    def __init__(
        self, emit: Callable[[Event], None], should_stop: Callable[[], bool], skipped: Callable[[], bool]
    ) -> None:
        self.emit, self.should_stop, self.skipped = emit, should_stop, skipped
        self.last, self.tokens, self.skipped_in_a_row = time.monotonic(), 0.0, 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.should_stop():
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary after the last step
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
        """Whether float16's loss scaler skipped this step because the gradient overflowed."""
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
                "The values overflowed, or the adapter was damaged; further training would be useless.",
                "The last good checkpoint is kept. Use --dtype bfloat16 or float32, or a lower --learning-rate.",
            )


def require_finite_weights(weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
    """Raises NumbersError that names the first weight with a value that is not finite."""
    for name, tensor in weights:
        if not bool(torch.isfinite(tensor).all()):
            raise NumbersError(
                f"{name} contains values that are not finite after step {step}.",
                "The update overflowed, so no checkpoint was written.",
                "The last good checkpoint is kept. Use a lower --learning-rate, or --dtype float32.",
            )


@contextmanager
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
