"""How pairs are made: the principles, the worked examples, and the settings that all steps share."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.config import Stage3Config
from engine.models.backend import Backend
from engine.models.chat import Conversation
from engine.models.generation.sampling import SamplingSettings
from engine.pairs.generation.dialogue import revision_prompt
from engine.pairs.principles.constitution import Constitution, load_constitution
from engine.pairs.principles.few_shot import load_few_shot

REPLIES_OF_A_REVISION = 3
"""Draft, critique and revision stand in one conversation, each as long as `--max-new-tokens` allows."""


@dataclass(frozen=True)
class GenerationSettings:
    constitution: Constitution
    examples: Conversation
    sampling: SamplingSettings
    seed: int
    max_attempts: int
    rounds: int

    @classmethod
    def of(cls, config: Stage3Config) -> GenerationSettings:
        """Raises ConfigError where the constitution or the examples cannot be read."""
        return cls(
            load_constitution(config.constitution),
            load_few_shot(config.few_shot),
            SamplingSettings(config.max_new_tokens, config.temperature, config.top_p),
            config.seed,
            config.max_attempts,
            config.rounds,
        )

    def beside_the_prompt(self, backend: Backend) -> int:
        """Tokens that the longest revision takes beside its prompt: examples, requests, and three replies."""
        nothing: Conversation = [{"role": "user", "content": ""}]
        around = [
            backend.length(revision_prompt(nothing, "", "", principle, self.examples))
            for principle in self.constitution.principles
        ]
        return max(around) + REPLIES_OF_A_REVISION * self.sampling.max_new_tokens
