"""TRL's trainer where the base model is spread over the processes (FSDP2), so that no device ever holds it whole.

The model comes from its file on the CPU, where it is a view of the file: all processes of a machine share it. Before the first
pass each moves its part of one layer after the other to its device. Checkpoints are those of a single process, so that a training
goes on with any number of them, sharded or not.

accelerate would spread it too, but only on GPUs, so that nothing of it could be tested without several, and only when training
begins: after the reference and the first loss. Imports torch and TRL; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.core.layout import ADAPTER_WEIGHTS
from engine.core.sizes import format_size
from engine.dpo.training.sharded import (
    bytes_held,
    layers_of,
    let_go_of_whole_weights,
    load_whole_optimizer_state,
    load_whole_weights,
    spread,
    whole_optimizer_state,
    whole_weights,
)
from engine.dpo.training.trl_trainer import Stage3Trainer, require_finite_weights
from engine.models.loading import POLICY_ADAPTER
from engine.models.tensors import adapter_parts, file_tensors, whole

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""Trainer's names for them."""


class ShardedTrainer(Stage3Trainer):
    """Each process has a part of every weight. What a checkpoint holds is put together before the first one writes it."""

    passes_together = True
    optimizer: Any
    _whole: dict[str, torch.Tensor]
    _whole_state: dict[str, Any]

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Trainer would move all of it; `place` moves this process's part."""

    def place(self) -> str:
        spread(self.model, layers_of(self.model.get_base_model()), self.args.device, self.ranks.count)
        here, total = bytes_held(self.model.parameters())
        most = max(self.ranks.gather(here))
        return (
            f"The model is spread over {self.ranks.count} processes: each holds at most {format_size(most)} of "
            f"{format_size(total)} ({most / total:.0%})."
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """As Trainer's own, but for wrapping the model: each pass adds up the gradients by itself."""
        let_go_of_whole_weights(self.model)  # of the reference and the first loss
        # With evaluation_mode, of all that accelerate does to a model it gets only the precision of the steps.
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
        return whole(super()._clip_grad_norm(model))

    @contextmanager
    def _gradients_kept(self, model: Any) -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = file_tensors(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS)
        load_whole_weights(adapter_parts(self.model, POLICY_ADAPTER), saved)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._whole, self._whole_state = (
            whole_weights(self.model, f".{POLICY_ADAPTER}."),
            whole_optimizer_state(self.optimizer),
        )
        super()._save_checkpoint(model, trial)

    def _weights(self) -> dict[str, torch.Tensor]:
        return self._whole

    def _require_finite_weights(self, step: int) -> None:
        require_finite_weights(self._whole.items(), step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(self._whole_state, Path(output_dir) / OPTIMIZER)
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        load_whole_optimizer_state(self.optimizer, saved)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))
