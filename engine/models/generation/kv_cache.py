"""The KV cache of a batch: join prefixes into it, copy rows out of it, and drop rows from it.

Imports torch; import it where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from engine.models.generation.prefix_cache import CachedPrefix, PrefixMatch


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """`cache` as a keyword argument of the model's forward pass: `cache`, or `past_key_values` before transformers 5.24."""
    # PEFT passes all keyword arguments on to the base model.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {_cache_name(type(inner).forward): cache}


@lru_cache
def _cache_name(forward: Callable[..., object]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class PreallocatedLayer(DynamicLayer):
    """A layer with preallocated columns for new tokens, so that adding one does not copy all the previous ones.

    Both buffers are (R, heads, columns, head size); `keys` and `values` are views of their first `used` columns.
    """

    def __init__(self, reserve: int) -> None:
        super().__init__()
        self.used = 0
        self._reserve = reserve
        self._buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_buffers(cls, keys: Tensor, values: Tensor, used: int) -> PreallocatedLayer:
        """A layer whose first `used` columns are filled. `keys` and `values` are (R, heads, T, head size)."""
        layer = cls(keys.shape[2] - used)
        layer._buffers = (keys, values)
        layer._set_used(used)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the keys and values of N new tokens, both (R, heads, N, head size); returns all that are filled."""
        new_states, stop = (key_states, value_states), self.used + key_states.shape[2]
        if self._buffers is None:
            self._buffers = (self._with_capacity(key_states, 0), self._with_capacity(value_states, 0))
        elif stop > self._buffers[0].shape[2]:
            self._buffers = (self._with_capacity(self._buffers[0], stop), self._with_capacity(self._buffers[1], stop))
        for buffer, new_part in zip(self._buffers, new_states, strict=True):
            buffer[:, :, self.used : stop] = new_part
        self._set_used(stop)
        return self.keys, self.values

    def select(self, rows: Tensor, first_column: int) -> None:
        """Keep only `rows`, and of them only the columns from `first_column` on."""
        if self._buffers is not None:
            keys, values = self._buffers
            rows = rows.to(keys.device)  # in a model on several devices, each layer has its own
            self._buffers = (keys[rows, :, first_column:], values[rows, :, first_column:])
            self._set_used(self.used - first_column)

    def _with_capacity(self, tensor: Tensor, min_columns: int) -> Tensor:
        """A larger buffer that begins with `tensor`: (R, heads, C, head size) → (R, heads, C + reserve or more, head size)."""
        rows, heads, columns, size = tensor.shape
        buffer = tensor.new_zeros(rows, heads, max(columns + self._reserve, min_columns), size)
        buffer[:, :, :columns] = tensor
        return buffer

    def _set_used(self, used: int) -> None:
        assert self._buffers is not None
        self.used = used
        self.keys, self.values = (buffer[:, :, :used] for buffer in self._buffers)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True


def attends_to_all(model: PreTrainedModel, length: int) -> bool:
    """Whether every layer attends to all of `length` tokens, so that cached keys and values can be reused exactly.

    False for layers with another kind of state, and for a sliding window that is shorter than the text: padding in the middle
    of a row pushed tokens out of the window, and one row of eight came out different.
    """
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > length)
        for layer in layers
    )


def layer_count(model: PreTrainedModel) -> int:
    return len(DynamicCache(config=model.config).layers)


def join_prefixes(matches: Sequence[PrefixMatch], layers: int, reserve: int) -> Cache:
    """One cache of all prefixes, padded on the left with zeros, with `reserve` more columns for new tokens.

    Per layer: (R, heads, T + reserve, head size), where T is the length of the longest prefix.
    """
    width = max(match.length for match in matches)
    if width == 0:
        return Cache(layers=[PreallocatedLayer(reserve) for _ in range(layers)])
    return Cache(layers=[_joined(matches, index, width, reserve) for index in range(layers)])


def copy_row(cache: Cache, row: int, ids: Sequence[int], columns: slice | Tensor) -> CachedPrefix:
    """Copy the keys and values of one row out of `cache`; `ids` are its tokens, and `columns` where they are.

    Per layer: (R, heads, T, head size) → (heads, len(ids), head size).
    """

    def copied_columns(part: Tensor) -> Tensor:
        selected = columns.to(part.device) if isinstance(columns, Tensor) else columns
        return part[row][:, selected].clone()

    return CachedPrefix(
        tuple(ids), tuple((copied_columns(layer.keys), copied_columns(layer.values)) for layer in cache.layers)
    )


def _joined(matches: Sequence[PrefixMatch], index: int, width: int, reserve: int) -> PreallocatedLayer:
    like = next(match.cached for match in matches if match.cached is not None).layers[index]
    # keys and values: (R, heads, width + reserve, head size)
    buffers = [part.new_zeros(len(matches), part.shape[0], width + reserve, part.shape[2]) for part in like]
    for row, match in enumerate(matches):
        if match.cached is not None:
            for buffer, part in zip(buffers, match.cached.layers[index], strict=True):
                buffer[row, :, width - match.length : width] = part[:, : match.length]
    return PreallocatedLayer.from_buffers(buffers[0], buffers[1], width)
