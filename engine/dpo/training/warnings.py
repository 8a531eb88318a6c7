"""Warnings during training. Each is issued once, with its figures, and does not stop training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.core.events import Event, Message

STAGE = "training"
WINDOW = 20
"""Optimizer steps to average over."""
DEVIATIONS = 2.5
"""Standard errors below chance that cause a warning: before anything is learned, half of all windows are slightly below
chance. This gives one false alarm in 160 independent windows."""
COLLAPSE = 0.5
"""Nats per token by which chosen replies may become less likely: at one half, a probability of 60 % falls to 36 %. Margins
then grow by making both replies unlikely (Pal et al. 2024, Razin et al. 2024)."""


@dataclass
class TrainingWarnings:
    """Checks each step's figures as TRL logs them, and warns through `emit`."""

    emit: Callable[[Event], None]
    tokens_per_reply: float
    """Mean length of the chosen replies: TRL logs log-probabilities summed over their tokens."""
    pairs_per_step: int
    _accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _margins: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _chosen: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _first_chosen: list[float] = field(default_factory=list)
    _warned: set[str] = field(default_factory=set)

    def record(self, step: int, logs: dict[str, Any]) -> None:
        """Record one optimizer step; `logs` is TRL's log entry."""
        if step > 1 and float(logs["rewards/margins"]) != 0.0:
            # While policy and reference are equal (before the first update, or at learning rate 0) there is no preference.
            self._accuracies.append(float(logs["rewards/accuracies"]))
            self._margins.append(float(logs["rewards/margins"]))
        chosen = float(logs["logps/chosen"])
        self._chosen.append(chosen)
        if len(self._first_chosen) < WINDOW:
            self._first_chosen.append(chosen)
        if len(self._accuracies) == WINDOW:
            self._check(step)

    def replay(self, history: Iterable[dict[str, Any]]) -> None:
        """Record the steps of an earlier process, without repeating their warnings."""
        emit, self.emit = self.emit, lambda event: None
        try:
            for entry in history:
                if "loss" in entry:
                    self.record(int(entry["step"]), entry)
        finally:
            self.emit = emit

    def _check(self, step: int) -> None:
        accuracy, margin, chosen, first = (
            sum(values) / len(values) for values in (self._accuracies, self._margins, self._chosen, self._first_chosen)
        )
        accuracy_error = 0.5 / math.sqrt(WINDOW * self.pairs_per_step)
        margin_error = math.sqrt(sum((value - margin) ** 2 for value in self._margins) / (WINDOW - 1) / WINDOW)
        window = f"Over the last {WINDOW} steps (to step {step})"
        if accuracy < 0.5 - DEVIATIONS * accuracy_error:
            self._warn(
                "accuracy",
                f"{window}, the chosen reply had the higher reward in only {accuracy:.0%} of the pairs, below chance: "
                "chosen and rejected may be swapped, or --learning-rate too high.",
            )
        if margin < -DEVIATIONS * margin_error:
            self._warn(
                "margin",
                f"{window}, the mean margin is {margin:.3f} nats, below 0: the model learns to prefer the rejected replies.",
            )
        fallen = (first - chosen) / max(self.tokens_per_reply, 1.0)
        if fallen > COLLAPSE:
            self._warn(
                "chosen",
                f"{window}, the mean log-probability of the chosen replies was {chosen:.1f} nats, {first:.1f} at first: "
                f"{fallen:.2f} nats per token less likely. The margin grows by making both replies unlikely; "
                "a lower --learning-rate or a higher --beta prevents it.",
            )

    def _warn(self, name: str, text: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.emit(Message("warning", text))
