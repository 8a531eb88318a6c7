"""What made a record: a hash of everything that its texts depend on, so that no text is generated twice.

The batch size, the order of prompts and the number of examples are not part of it: a text depends on its own seed, and on
its neighbours only in the last bits of floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.models.templates.given import template_key
from engine.pairs.detectors import PROMPT_TOO_LONG
from engine.pairs.generation.prompts import Prompt
from engine.pairs.generation.recipe import GenerationSettings
from engine.run.results import Results
from engine.storage.files import sha256_of_json


@dataclass(frozen=True)
class RecordIdentity:
    """Tells the records that a run wants from those that were made in another way."""

    settings: str
    """A hash of the generation settings, the models and the seed."""
    max_prompt_tokens: int

    @classmethod
    def of(
        cls, config: Stage3Config, recipe: GenerationSettings, results: Results, *, dtype: str | None = None
    ) -> RecordIdentity:
        """`dtype`: the number format, if preflight has chosen one and not recorded it yet."""
        made_by = {**recipe.made_by(), "generator": _generator(config, results, dtype)}
        if config.critic_url is not None:
            made_by["critic"] = config.critic_model
        return cls(sha256_of_json(made_by), config.max_prompt_tokens)

    def key(self, prompt: Prompt) -> str:
        """Of the record that the models make for a prompt."""
        return sha256_of_json([self.settings, prompt.id])[:32]

    def key_of_too_long(self, prompt: Prompt) -> str:
        """Of the record that says that a prompt is too long: it also depends on the limit."""
        return sha256_of_json([self.settings, prompt.id, self.max_prompt_tokens])[:32]

    def holds(self, prompt: Prompt, record: Mapping[str, Any]) -> bool:
        """Whether this record is the one that the run would make now."""
        if record.get("status") == PROMPT_TOO_LONG:
            return record.get("made_with") == self.key_of_too_long(prompt)
        tokens = record.get("prompt_tokens")
        fits = not isinstance(tokens, int) or tokens <= self.max_prompt_tokens
        return fits and record.get("made_with") == self.key(prompt)


def _generator(config: Stage3Config, results: Results, chosen_dtype: str | None) -> list[Any]:
    """Who writes: the model on a server, or base model, adapter and number format."""
    if config.server_url is not None:
        return ["server", config.server_model]
    adapter, preflight = results.adapter, results.preflight
    if adapter is None:
        raise PreconditionError(
            "This run has no verified Stage 2 adapter.",
            "Pairs belong to the adapter that made them.",
            "Run `stage3-tui --auto --until adapter` first.",
        )
    dtype = chosen_dtype or (config.dtype if preflight is None else preflight.dtype)
    template = [template_key(config)] if config.chat_template else []  # keys of older runs stay what they were
    return [adapter.base_model_id, adapter.base_model_commit, adapter.tensors_sha256, dtype, *template]
