"""The local backend: the Stage 2 policy on this machine's device."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import Stage3Config
from engine.models.chat import Conversation
from engine.models.loading import load_base, load_policy, load_tokenizer, resolve_dtype
from engine.models.memory import in_halves
from engine.models.sampling import Reply, SamplingSettings, generate, prompt_length
from engine.stop import StopToken

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalBackend:
    """Answers conversations with a model in memory. `tokens` counts what it generated."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: StopToken) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokens = 0
        self._stop = stop

    def reply(
        self, conversations: Sequence[Conversation], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[Reply]:
        def work(rows: Sequence[int]) -> list[Reply]:
            return generate(
                self.model,
                self.tokenizer,
                [conversations[row] for row in rows],
                settings,
                seeds=[seeds[row] for row in rows],
                should_stop=lambda: self._stop.requested,
            )

        replies = in_halves(work, range(len(conversations)), free_memory)
        self._stop.raise_if_requested()
        self.tokens += sum(reply.tokens for reply in replies)
        return replies

    def length(self, conversation: Conversation) -> int:
        return prompt_length(self.tokenizer, conversation)


def load_stage2_backend(config: Stage3Config, adapter: Path, stop: StopToken, token: str | None) -> LocalBackend:
    """The Stage 2 policy for generation alone: this copy is thrown away afterwards, so the adapter may be merged into it.

    Merged where the arithmetic is float32; in 16 bits merging rounds the weights (by up to 5e-4, measured), and the
    policy that drafts would not be the one that trains.
    """
    import torch

    base = load_base(config, token)
    policy = load_policy(base, adapter)
    merged = policy.merge_and_unload() if resolve_dtype(config) == torch.float32 else policy
    return LocalBackend(merged.eval(), load_tokenizer(config, token), stop)


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
