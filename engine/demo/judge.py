"""The demo's judge: it knows every sentence of the grammar, so its scores are right by construction.

Only for --demo: whatever the grammar doesn't say scores 0.0, however good it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.demo.grammar import Kind, read_answer
from engine.models.chat import Conversation
from engine.pairs.judges.base import Comparison, ScorePair

SCORES: dict[Kind, float] = {
    "best": 1.0,
    "good": 0.9,
    "curt": 0.3,
    "careless": 0.2,
    "rude": 0.1,
    "astray": 0.0,
    "broken": 0.0,
}


class GrammarJudge:
    """Scores from 0.0 (not a sentence of the grammar) to 1.0 (a good answer with a tip)."""

    name = "demo"
    about = "the demo's grammar, right by construction; 0 (no sentence of it) to 1 (a good answer with a tip)"

    def score(self, cases: Sequence[Comparison]) -> list[ScorePair]:
        """The grades of both replies of each case."""
        graded = [self.grade(case.conversation, [case.first, case.second]) for case in cases]
        return [ScorePair(first, second) for first, second in graded]

    def grade(self, conversation: Conversation, replies: Sequence[str]) -> list[float]:
        """One score a reply; higher is better."""
        return [SCORES[read_answer(conversation, reply)] for reply in replies]

    def flawed(self, conversation: Conversation, reply: str) -> bool:
        """Whether the reply is anything but a good answer to the conversation's question."""
        return read_answer(conversation, reply) not in ("best", "good")
