"""Choose the batch size for generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.machine.memory import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_BATCH_SIZE = 64
"""128 rows took 12 % fewer CPU seconds (bench/RESULTS.md), for twice the memory."""
MEMORY_FRACTION = 0.5
"""Share of free host memory to use. Host memory gives no warning: the process is killed."""
COPIES = 2
"""Keys and values exist twice for a moment, while rows are joined into a batch."""
PROBE_TOKENS = 24
"""Length of the row that measures the size of the cache per token."""


def chosen_batch_size(config: Stage3Config) -> int:
    """`--generation-batch-size`, or the maximum. Callers halve the batch if memory runs out."""
    return config.generation_batch_size or MAX_BATCH_SIZE


def fitting_batch_size(model: PreTrainedModel, longest: int, processes: int = 1) -> int:
    """The largest power of two, up to MAX_BATCH_SIZE, at which rows of `longest` tokens fit in memory.

    On a GPU it is found by trying. On the CPU it is computed from the size of the cache per token, because a try that runs
    out of memory gets the process killed.

    processes   number of processes that generate at the same time; on the CPU they share the memory
    """
    if model.device.type == "cpu":
        import psutil

        budget = psutil.virtual_memory().available * MEMORY_FRACTION / processes
        return _power_of_two(int(budget / (COPIES * longest * kv_bytes_per_token(model))))
    size = MAX_BATCH_SIZE
    while size > 1 and not _fits(model, size, longest):
        free_memory()
        size //= 2
    free_memory()
    return size


def kv_bytes_per_token(model: PreTrainedModel) -> float:
    """Measured size of keys and values per token, in bytes, over all layers."""
    import torch
    from transformers import DynamicCache

    from engine.models.generation.kv_cache import cache_argument

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(
            input_ids=torch.ones(1, PROBE_TOKENS, dtype=torch.long, device=model.device),
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(model, cache),
        )
    tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)) / PROBE_TOKENS


def _fits(model: PreTrainedModel, size: int, longest: int) -> bool:
    from engine.models.generation.decoding import generate_batch
    from engine.models.generation.samplers import Greedy

    vocabulary = model.config.get_text_config().vocab_size
    # All rows differ, or their common prefix would be prefilled only once.
    rows = [[row % vocabulary] * max(longest - 2, 1) for row in range(size)]
    try:
        generate_batch(model, rows, Greedy(), [], [2] * size, pad=0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _power_of_two(limit: int) -> int:
    return min(MAX_BATCH_SIZE, 1 << max(limit.bit_length() - 1, 0))
