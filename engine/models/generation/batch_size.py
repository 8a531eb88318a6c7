"""How many conversations are generated side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.machine.memory import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 64
"""128 rows took 12 % fewer CPU seconds (bench/RESULTS.md), for twice the memory."""
SHARE_OF_FREE_MEMORY = 0.5
"""Of a computer's own memory, which does not say when it has run out: the process is killed."""
COPIES = 2
"""Keys and values stand twice for a moment, when rows are joined into a batch."""
PROBE = 24
"""Tokens that are read to see what the model keeps of one."""


def chosen_batch_size(config: Stage3Config) -> int:
    """What `--generation-batch-size` says, or the largest; for work that is halved if memory runs out."""
    return config.generation_batch_size or LARGEST


def fitting_batch_size(model: PreTrainedModel, longest: int) -> int:
    """The most rows of `longest` tokens each that fit in memory, a power of two of at most LARGEST; found by trying.

    On the CPU it is computed from what one token leaves behind: there, trying could end the process.
    """
    if model.device.type == "cpu":
        import psutil

        room = psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY
        return _power_of_two(int(room / (COPIES * longest * kept_bytes(model))))
    size = LARGEST
    while size > 1 and not _fits(model, size, longest):
        free_memory()
        size //= 2
    free_memory()
    return size


def kept_bytes(model: PreTrainedModel) -> float:
    """Bytes that the model keeps of one token (keys and values of all layers), measured."""
    import torch
    from transformers import DynamicCache

    from engine.models.generation.kv_cache import given_cache

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(
            input_ids=torch.ones(1, PROBE, dtype=torch.long, device=model.device),
            use_cache=True,
            logits_to_keep=1,
            **given_cache(model, cache),
        )
    kept = [tensor for layer in cache.layers for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in kept)) / PROBE


def _fits(model: PreTrainedModel, size: int, longest: int) -> bool:
    from engine.models.generation.decoding import generate_batch
    from engine.models.generation.samplers import Greedy

    words = model.config.get_text_config().vocab_size
    rows = [[row % words] * max(longest - 2, 1) for row in range(size)]  # no two alike, or they were read once
    try:
        generate_batch(model, rows, Greedy(), [], [2] * size, pad=0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _power_of_two(most: int) -> int:
    return min(LARGEST, 1 << max(most.bit_length() - 1, 0))
