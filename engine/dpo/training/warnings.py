"""Warnings during training: each once, with its figures, without stopping."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.core.events import Event, Message

STAGE = "training"
WINDOW = 20
"""Optimizer steps that are averaged."""
DEVIATIONS = 2.5
"""Standard errors below chance. Before anything is learned, half of all windows are slightly below it. One false alarm in 160
independent windows."""
COLLAPSE = 0.5
"""Nats per token by which chosen replies may become less likely: at one half, a probability of 60 % falls to 36 %. Margins then
grow by making both replies unlikely (Pal et al. 2024, Razin et al. 2024)."""


@dataclass
class TrainingWarnings:
    """Checks each step's figures as TRL logs them, and warns through `emit`."""

    emit: Callable[[Event], None]
    tokens_a_reply: float
    """Mean tokens of the chosen replies: TRL logs sums over them."""
    pairs_a_step: int
    _accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _margins: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _chosen: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _first_chosen: list[float] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    def look(self, step: int, logs: dict[str, Any]) -> None:
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
            self._judge(step)

    def recall(self, history: Iterable[dict[str, Any]]) -> None:
        """Include the steps of an earlier process, which gave their warnings already."""
        emit, self.emit = self.emit, lambda event: None
        try:
            for entry in history:
                if "loss" in entry:
                    self.look(int(entry["step"]), entry)
        finally:
            self.emit = emit

    def _judge(self, step: int) -> None:
        accuracy, margin, chosen, first = (
            sum(values) / len(values) for values in (self._accuracies, self._margins, self._chosen, self._first_chosen)
        )
        of_chance = 0.5 / math.sqrt(WINDOW * self.pairs_a_step)
        of_margin = math.sqrt(sum((value - margin) ** 2 for value in self._margins) / (WINDOW - 1) / WINDOW)
        lately = f"Over the last {WINDOW} steps (to step {step})"
        if accuracy < 0.5 - DEVIATIONS * of_chance:
            self._tell(
                "accuracy",
                f"{lately}, the chosen reply had the higher reward in only {accuracy:.0%} of the pairs, below chance: "
                "chosen and rejected may be swapped, or --learning-rate too high.",
            )
        if margin < -DEVIATIONS * of_margin:
            self._tell(
                "margin",
                f"{lately}, the mean margin is {margin:.3f} nats, below 0: the model learns to prefer the rejected replies.",
            )
        fallen = (first - chosen) / max(self.tokens_a_reply, 1.0)
        if fallen > COLLAPSE:
            self._tell(
                "chosen",
                f"{lately}, the chosen replies have {chosen:.1f} nats on average, from {first:.1f} at first: "
                f"{fallen:.2f} nats per token less likely. The margin grows by making both replies unlikely; "
                "a lower --learning-rate or a higher --beta prevents it.",
            )

    def _tell(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self.emit(Message("warning", text))
