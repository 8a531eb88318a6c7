"""Trainer callbacks for warnings and TensorBoard. Imports transformers, so the trainer imports this only when it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from engine.core.errors import PreconditionError
from engine.dpo.training.warnings import TrainingWarnings


class WarningsCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Passes each step's figures to TrainingWarnings."""

    def __init__(self, training_warnings: TrainingWarnings) -> None:
        self._warnings = training_warnings

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._warnings.replay(state.log_history)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self._warnings.record(state.global_step, logs)


def tensorboard(folder: Path) -> TrainerCallback:
    """A callback that writes figures to `folder`. Raises PreconditionError if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PreconditionError(
            "--report-to tensorboard needs the package tensorboard, which is not installed.",
            str(error),
            "Install the extra: `pip install 'stage3-tui[tensorboard]'`, or omit --report-to.",
        ) from error
    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))


class TensorBoardCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes every figure of a step under its name. transformers' own callback would also write settings and paths."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        for name, value in (logs or {}).items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"train/{name}", value, state.global_step)
        self._writer.flush()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._writer.close()
