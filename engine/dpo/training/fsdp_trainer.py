"""TRL's trainer with the base model sharded over the processes (FSDP2), so that no device ever holds all of it.

The model is loaded on the CPU as a memory-mapped view of its file, which all processes of a machine share. Before the first
pass, each process moves its shard to its device, layer by layer. Checkpoints have the format of a single process, so that
training can continue with any number of processes, sharded or not.

accelerate shards models, too, but only on GPUs, so that testing would need several, and only when training begins, which is
after the reference and the first loss. Imports torch and TRL; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.core.layout import ADAPTER_WEIGHTS
from engine.core.sizes import format_size
from engine.dpo.training.fsdp import (
    bytes_held,
    full_optimizer_state,
    full_weights,
    layers_of,
    load_full_optimizer_state,
    load_full_weights,
    reshard,
    shard_model,
)
from engine.dpo.training.trl_trainer import Stage3Trainer, require_finite_weights
from engine.models.loading import POLICY_ADAPTER
from engine.models.tensors import file_tensors, full_tensor, local_adapter_tensors

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""File names that transformers' Trainer uses."""


class FSDPTrainer(Stage3Trainer):
    """Each process has a shard of every weight. All processes gather the contents of a checkpoint, then rank 0 writes it."""

    forward_in_lockstep = True
    optimizer: Any
    _full_weights: dict[str, torch.Tensor]
    _full_optimizer_state: dict[str, Any]

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Do nothing: Trainer would move the whole model; `place_weights` moves this process's shard."""

    def place_weights(self) -> str:
        shard_model(self.model, layers_of(self.model.get_base_model()), self.args.device, self.group.world_size)
        local, total = bytes_held(self.model.parameters())
        largest = max(self.group.gather(local))
        return (
            f"The model is sharded over {self.group.world_size} processes: each holds at most {format_size(largest)} of "
            f"{format_size(total)} ({largest / total:.0%})."
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Like Trainer's own, except that the model is not wrapped: FSDP reduces the gradients in each backward pass."""
        reshard(self.model)  # after the reference and the first loss
        # With evaluation_mode, accelerate sets up mixed precision, and nothing else.
        self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        self.create_optimizer()
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.create_scheduler(num_training_steps=max_steps)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader
        return self.model, train_dataloader

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        return full_tensor(super()._clip_grad_norm(model))

    @contextmanager
    def _no_gradient_sync(self, model: Any) -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = file_tensors(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS)
        load_full_weights(local_adapter_tensors(self.model, POLICY_ADAPTER), saved)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._full_weights, self._full_optimizer_state = (
            full_weights(self.model, f".{POLICY_ADAPTER}."),
            full_optimizer_state(self.optimizer),
        )
        super()._save_checkpoint(model, trial)

    def _weights(self) -> dict[str, torch.Tensor]:
        return self._full_weights

    def _require_finite_weights(self, step: int) -> None:
        require_finite_weights(self._full_weights.items(), step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(self._full_optimizer_state, Path(output_dir) / OPTIMIZER)
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        load_full_optimizer_state(self.optimizer, saved)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))
