"""How pairs are generated: method, principles, worked examples, and the settings that all steps share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.core.config import Stage3Config
from engine.models.backend import ModelSizes
from engine.models.chat import Conversation
from engine.models.generation.sampling import SamplingSettings
from engine.pairs.generation.dialogue import revision_prompt, with_persona
from engine.pairs.judges.base import judge_name
from engine.pairs.principles.constitution import Constitution, Principle, load_constitution
from engine.pairs.principles.few_shot import load_few_shot

REPLIES_PER_REVISION = 3
"""Draft, critique and revision share one conversation; each has up to `--max-new-tokens` tokens."""


@dataclass(frozen=True)
class GenerationSettings:
    constitution: Constitution
    examples: Conversation
    sampling: SamplingSettings
    seed: int
    max_attempts: int
    rounds: int
    method: str = "critique-revision"
    num_drafts: int = 4
    judge: str | None = None
    """The name of the judge that ranks drafts."""

    @classmethod
    def of(cls, config: Stage3Config) -> GenerationSettings:
        """Raises ConfigError if the constitution or the worked examples cannot be read."""
        return cls(
            load_constitution(config.constitution),
            load_few_shot(config.few_shot),
            SamplingSettings(config.max_new_tokens, config.temperature, config.top_p),
            config.seed,
            config.max_attempts,
            config.rounds,
            config.method,
            config.num_drafts,
            judge_name(config),
        )

    def overhead_tokens(self, backend: ModelSizes) -> int:
        """Tokens that the longest conversation needs besides its prompt: examples, requests or personas, and all replies."""
        lengths = [
            backend.length(conversation)
            for principle in self.constitution.principles
            for conversation in self._request_conversations(principle)
        ]
        replies = REPLIES_PER_REVISION if self.method == "critique-revision" else 1
        return max(lengths) + replies * self.sampling.max_new_tokens

    def _request_conversations(self, principle: Principle) -> list[Conversation]:
        """A principle's conversations, with an empty prompt."""
        empty_prompt: Conversation = [{"role": "user", "content": ""}]
        match self.method:
            case "contrast":
                return [
                    with_persona(empty_prompt, persona)
                    for persona in (principle.chosen_system, principle.rejected_system)
                ]
            case "best-of-n":
                return [empty_prompt]
            case _:
                return [revision_prompt(empty_prompt, "", "", principle, self.examples)]

    def text_inputs(self) -> dict[str, Any]:
        """Everything that this method's texts depend on, as plain data, and nothing that only other methods use."""
        principles = [asdict(principle) for principle in self.constitution.principles]
        settings = {"sampling": asdict(self.sampling), "seed": self.seed}
        match self.method:
            case "contrast":
                personas = [
                    {"id": one.id, "weight": one.weight, "personas": [one.chosen_system, one.rejected_system]}
                    for one in self.constitution.principles
                ]
                return {**settings, "method": "contrast", "principles": personas, "max_attempts": self.max_attempts}
            case "best-of-n":
                rules = [{"id": one.id, "weight": one.weight, "text": one.text} for one in self.constitution.principles]
                drafts = {"num_drafts": self.num_drafts, "judge": self.judge}
                return {**settings, "method": "best-of-n", "principles": rules, **drafts}
            case _:  # the format from before --method existed, so that older records stay valid
                for principle in principles:
                    del principle["persona"], principle["opposite"]
                return {
                    **settings,
                    "constitution": {"principles": principles},
                    "examples": self.examples,
                    "max_attempts": self.max_attempts,
                    "rounds": self.rounds,
                }
