"""The question that a language model is asked: which of two replies is better by a principle, (A) or (B)?

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", section 4.1: the preference is read from the
log-probabilities of the two letters. Asked in both orders, because models prefer a place (Zheng et al. 2023).
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
"""Log-odds nearer to 0 than this are a tie: what rounding makes of the same row in a batch of another shape."""

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
class PrincipleChoice:
    """The principle that each case is judged by."""

    constitution: Constitution
    seed: int

    def of(self, case: Comparison) -> Principle:
        """Its own criterion; else the principle that it names, if the constitution has it; else one drawn by its id."""
        if case.criterion is not None:
            return Principle("criterion", case.criterion, "", "")
        for principle in self.constitution.principles:
            if principle.id == case.principle_id:
                return principle
        return self.constitution.draw(Random(seed_of(self.seed, case.id, "judge", 0)))


def both_orders(case: Comparison, principle: Principle) -> tuple[Conversation, Conversation]:
    """The question with the case's first reply as (A), and with its second reply as (A)."""
    return question(case, principle, case.first, case.second), question(case, principle, case.second, case.first)


def question(case: Comparison, principle: Principle, a: str, b: str) -> Conversation:
    asked = QUESTION.format(dialogue=dialogue(case.conversation), a=a, b=b, principle=principle.text)
    return [{"role": "user", "content": asked}]


def dialogue(conversation: Conversation) -> str:
    """A conversation as hh-rlhf writes it."""
    return "\n\n".join(f"{SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in conversation)


def second_over_first(order_1: tuple[float, float], order_2: tuple[float, float]) -> float:
    """Log-odds of the second reply over the first, in nats, averaged over both orders.

    order_1   log-probabilities of (A, B) where A is the first reply
    order_2   log-probabilities of (A, B) where A is the second reply

    A liking for a place, of the same size in both orders, cancels: (-1, -3) and (-1, -3) give 0.
    """
    return ((order_1[1] - order_1[0]) + (order_2[0] - order_2[1])) / 2


def probabilities(log_odds: float) -> tuple[float, float]:
    """(first, second) as probabilities that add up to 1; exactly (0.5, 0.5) for a tie."""
    if abs(log_odds) < TIE_NATS:
        return 0.5, 0.5
    return _sigmoid(-log_odds), _sigmoid(log_odds)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
