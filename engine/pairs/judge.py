"""Who scores a draft and a revision. None by default, and every report says so."""

from __future__ import annotations

from typing import Protocol

from engine.config import Stage3Config
from engine.pairs.dialogue import Conversation


class Judge(Protocol):
    name: str

    def score(self, conversation: Conversation, replies: list[str]) -> list[float]:
        """One figure a reply to the conversation; higher is better. Raises rather than guesses."""
        ...

    def flawed(self, conversation: Conversation, reply: str) -> bool:
        """Whether the reply is one that should not be sent."""
        ...


def load_judge(config: Stage3Config) -> Judge | None:
    """The judge of `--judge`, or None."""
    if config.judge == "none":
        return None
    from engine.demo.judge import GrammarJudge

    return GrammarJudge()
