"""The identity of a record: a hash of everything its texts depend on, so that no text is generated twice.

The batch size, the order of the prompts and the number of examples are left out: a text depends on its own seed, and on its
neighbours in the batch only through the last bits of floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.models.templates.option import template_key
from engine.pairs.data.record import FAILED_ON_SERVER
from engine.pairs.detectors import PROMPT_TOO_LONG
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.settings import GenerationSettings
from engine.run.results import Results
from engine.storage.files import sha256_of_json


@dataclass(frozen=True)
class RecordIdentity:
    """Recognises records that this run would generate, among those made with other settings."""

    settings: str
    """A hash of the generation settings, the models and the seed."""
    max_prompt_tokens: int

    @classmethod
    def of(
        cls, config: Stage3Config, settings: GenerationSettings, results: Results, *, dtype: str | None = None
    ) -> RecordIdentity:
        """`dtype` is the number format that preflight chose but has not recorded yet."""
        inputs = {**settings.text_inputs(), "generator": _generator(config, results, dtype)}
        if config.critic_url is not None:
            inputs["critic"] = config.critic_model
        return cls(sha256_of_json(inputs), config.max_prompt_tokens)

    def key(self, prompt: Prompt) -> str:
        """The key of a prompt's generated record."""
        return sha256_of_json([self.settings, prompt.id])[:32]

    def too_long_key(self, prompt: Prompt) -> str:
        """The key of a prompt's "too long" record, which also depends on the limit."""
        return sha256_of_json([self.settings, prompt.id, self.max_prompt_tokens])[:32]

    def can_reuse(self, prompt: Prompt, record: Mapping[str, Any]) -> bool:
        """Whether the run would generate the same record now, so that a record from another set can be used. A prompt on which a
        server failed is tried again in each set.
        """
        return record.get("status") != FAILED_ON_SERVER and self.matches(prompt, record)

    def matches(self, prompt: Prompt, record: Mapping[str, Any]) -> bool:
        """Whether the record was made from this prompt with these settings."""
        if record.get("status") == PROMPT_TOO_LONG:
            return record.get("made_with") == self.too_long_key(prompt)
        tokens = record.get("prompt_tokens")
        fits = not isinstance(tokens, int) or tokens <= self.max_prompt_tokens
        return fits and record.get("made_with") == self.key(prompt)


def _generator(config: Stage3Config, results: Results, chosen_dtype: str | None) -> list[Any]:
    """What generates the texts: the server's model, or base model, adapter and number format."""
    if config.server_url is not None:
        return ["server", config.server_model]
    adapter, preflight = results.adapter, results.preflight
    if adapter is None:
        raise PreconditionError(
            "This run has no verified Stage 2 adapter.",
            "Pairs belong to the adapter that generated them.",
            "Run `stage3-tui --auto --until adapter` first.",
        )
    dtype = chosen_dtype or (config.dtype if preflight is None else preflight.dtype)
    template = [template_key(config)] if config.chat_template else []  # keeps the keys of older runs unchanged
    return [adapter.base_model_id, adapter.base_model_commit, adapter.tensors_sha256, dtype, *template]
