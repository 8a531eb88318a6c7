"""`train` and `train_as_planned` with the arguments taken from a test's context."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from engine.core.events import Event
from engine.dpo.training import distributed, trainer
from engine.dpo.training.dataset import Row
from engine.dpo.training.trainer import Trained
from engine.run.context import Context


def train(context: Context, rows: Sequence[Row], **options: Any) -> Generator[Event, None, Trained]:
    return trainer.train(context.config, context.run, rows, stop=context.stop, **options)


def train_as_planned(context: Context, rows: Sequence[Row], **options: Any) -> Generator[Event, None, Trained]:
    return distributed.train_as_planned(context.config, context.run, rows, stop=context.stop, **options)
