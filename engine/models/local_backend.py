"""The local backend: the Stage 2 policy on this machine's device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.machine.memory import free_memory, halve_on_oom
from engine.models.chat import Conversation
from engine.models.generation.batch_size import fitting_batch_size
from engine.models.generation.prefix_cache import PrefixCache
from engine.models.generation.sampling import Reply, SamplingSettings, generate, prompt_length
from engine.models.loading import load_base, load_policy, load_tokenizer, resolve_dtype
from engine.run.stop import StopToken

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalBackend:
    """Generates replies with a model in memory. `tokens` counts generated tokens.

    The prefixes of a call are cached until the next one, so a conversation that continues one of them is not prefilled again.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: StopToken, batch_size: int | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokens = 0
        self.processes = 1
        """Number of processes that generate at the same time on this machine."""
        self._requested_size = batch_size
        self._fitting_size: int | None = None
        """The batch size that fits, once a larger one has run out of memory."""
        self._prefix_cache = PrefixCache()
        self._stop = stop

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        def generate_rows(rows: Sequence[int]) -> list[Reply]:
            self._current_rows = len(rows)
            return generate(
                self.model,
                self.tokenizer,
                [conversations[row] for row in rows],
                settings,
                seeds=[seeds[row] for row in rows],
                prefix_cache=self._prefix_cache,
                should_stop=lambda: self._stop.requested,
            )

        replies: list[Reply] = []
        while len(replies) < len(conversations):
            step = self._fitting_size or len(conversations)
            rows = range(len(conversations))[len(replies) : len(replies) + step]
            replies += halve_on_oom(generate_rows, rows, self._free_memory_for)
        self._stop.raise_if_requested()
        self.tokens += sum(reply.tokens for reply in replies)
        return replies

    def length(self, conversation: Conversation) -> int:
        return prompt_length(self.tokenizer, conversation)

    def batch_size(self, longest: int) -> int:
        return self._requested_size or fitting_batch_size(self.model, longest, self.processes)

    def check(self, settings: SamplingSettings) -> list[str]:
        return []

    def warnings(self) -> list[str]:
        return []

    @property
    def context_length(self) -> int | None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    def clear_cache(self) -> None:
        """Drop the cached prefixes, for a measurement or to free memory."""
        self._prefix_cache.clear()

    def _free_memory_for(self) -> None:
        self._fitting_size = max(self._current_rows // 2, 1)
        self.clear_cache()
        free_memory()


def load_stage2_backend(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None) -> LocalBackend:
    """The Stage 2 policy for generation only, so that its adapter may be merged.

    It is merged in float32 only. In 16 bits, merging would round the weights (by up to 5e-4, measured), and the policy that
    drafts would differ from the one that trains.
    """
    import torch

    base = load_base(config, token)
    policy = load_policy(base, adapter)
    merged = policy.merge_and_unload() if resolve_dtype(config) == torch.float32 else policy
    return LocalBackend(merged.eval(), load_tokenizer(config, token), stop, config.generation_batch_size)
