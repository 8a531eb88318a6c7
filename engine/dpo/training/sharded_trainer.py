"""TRL's trainer where the base model is spread over the processes (FSDP2, by accelerate).

Until the first step each process has the whole model: for the reference and the first loss. Checkpoints are those of a single
process, so that a training goes on with any number of them, sharded or not. Imports torch and TRL; import it where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.dpo.training.sharded import load_whole_optimizer_state, whole_optimizer_state, whole_weights
from engine.dpo.training.trl_trainer import Stage3Trainer, require_finite_weights
from engine.models.loading import POLICY_ADAPTER

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""Trainer's names for them."""


class ShardedTrainer(Stage3Trainer):
    """Each process has a part of every weight. What a checkpoint holds is put together before the first one writes it."""

    _whole: dict[str, torch.Tensor]
    _whole_state: dict[str, Any]

    def train(self, *args: Any, resume_from_checkpoint: str | None = None, **more: Any) -> Any:
        if resume_from_checkpoint is not None:
            super()._load_from_checkpoint(resume_from_checkpoint, self.model)  # as long as its weights are whole
        return super().train(*args, resume_from_checkpoint=resume_from_checkpoint, **more)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer would do it after the weights were spread; `train` has done it before."""

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
