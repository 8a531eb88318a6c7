"""How much work a run has: pairs to make, pairs to train on, prompts to answer."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.config import Stage3Config
from engine.pairs.assessment.training_set import prompts_held_out
from engine.pairs.generation.cost import prompt_reads_per_pair, replies_per_pair


@dataclass(frozen=True)
class Workload:
    prompts: int
    """Prompts to make pairs from, or the number of imported pairs."""
    train: int
    """Pairs to train on in each epoch."""
    held_out: int
    """Pairs that both policies score after training."""
    replies: int
    """Replies generated per pair."""
    prompt_reads: float
    """How many times prompts are read per pair."""
    max_new_tokens: int
    epochs: float
    save_total_limit: int
    answered: int
    """Held-out prompts that both policies answer."""
    everyday: int
    """Everyday questions that both policies answer."""

    @classmethod
    def of(
        cls, config: Stage3Config, prompts: int, usable_share: float, split: tuple[int, int] | None = None
    ) -> Workload:
        """split   the sizes of the training set and the held-out set, once they are known"""
        usable = round(prompts * usable_share)
        held_out = prompts_held_out(usable, config.eval_fraction, config.min_eval_pairs)
        train, held_out = (usable - held_out, held_out) if split is None else split
        return cls(
            prompts=prompts,
            train=train,
            held_out=held_out,
            replies=replies_per_pair(config),
            prompt_reads=prompt_reads_per_pair(config),
            max_new_tokens=config.max_new_tokens,
            epochs=config.num_train_epochs,
            save_total_limit=config.save_total_limit,
            answered=min(config.eval_prompts, held_out),
            everyday=config.eval_harmless_prompts,
        )
