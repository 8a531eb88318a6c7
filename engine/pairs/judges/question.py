"""The question to a language model: by this principle, which reply is better, (A) or (B)?

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", section 4.1, read the preference from the log-probabilities
of the two letters. We ask in both orders, because models have a position bias (Zheng et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from engine.models.chat import Conversation
from engine.pairs.data.seeds import seed_of
from engine.pairs.judges.base import Comparison
from engine.pairs.principles.constitution import Constitution, Principle

LETTERS = ("A", "B")
TIE_NATS = 1e-4
"""Log-odds closer to 0 are a tie, because rounding in batches of different shapes accounts for that much."""

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
QUESTION = """\
Here is a conversation between a human and an assistant.

{dialogue}

Here are two answers that the assistant could give next.

(A) {a}

(B) {b}

Judge the two by this: {principle}

Which answer is better by it? Reply with one letter, A or B, and nothing else."""


@dataclass(frozen=True)
class PrincipleSelector:
    """Chooses the principle that each comparison is judged by."""

    constitution: Constitution
    seed: int

    def select(self, comparison: Comparison) -> Principle:
        """The comparison's own criterion, else its principle if the constitution has it, else one drawn with its id as seed."""
        if comparison.criterion is not None:
            return Principle("criterion", comparison.criterion, "", "")
        for principle in self.constitution.principles:
            if principle.id == comparison.principle_id:
                return principle
        return self.constitution.draw(Random(seed_of(self.seed, comparison.id, "judge", 0)))


def both_orders(comparison: Comparison, principle: Principle) -> tuple[Conversation, Conversation]:
    """The question with the first reply as (A), then with the second reply as (A)."""
    return question(comparison, principle, comparison.first, comparison.second), question(
        comparison, principle, comparison.second, comparison.first
    )


def question(comparison: Comparison, principle: Principle, a: str, b: str) -> Conversation:
    text = QUESTION.format(dialogue=dialogue(comparison.conversation), a=a, b=b, principle=principle.text)
    return [{"role": "user", "content": text}]


def dialogue(conversation: Conversation) -> str:
    """A conversation in the format of hh-rlhf."""
    return "\n\n".join(f"{SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in conversation)


def log_odds_of_second(order_1: tuple[float, float], order_2: tuple[float, float]) -> float:
    """Log-odds of the second reply over the first, in nats, averaged over both orders.

    order_1   log-probabilities of (A, B) where A is the first reply
    order_2   log-probabilities of (A, B) where A is the second reply

    A position bias of the same size in both orders cancels: (-1, -3) and (-1, -3) give 0.
    """
    return ((order_1[1] - order_1[0]) + (order_2[0] - order_2[1])) / 2


def probabilities(log_odds: float) -> tuple[float, float]:
    """(first, second), which add up to 1; exactly (0.5, 0.5) for a tie."""
    if abs(log_odds) < TIE_NATS:
        return 0.5, 0.5
    return _sigmoid(-log_odds), _sigmoid(log_odds)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
