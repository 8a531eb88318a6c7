"""The KV cache of a batch: join rows into it, copy rows out of it, drop rows from it.

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
    plain = (
        model.get_base_model() if hasattr(model, "get_base_model") else model
    )  # PEFT passes all keyword arguments on
    return {_cache_name(type(plain).forward): cache}


@lru_cache
def _cache_name(forward: Callable[..., object]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class PreallocatedLayer(DynamicLayer):
    """A layer with preallocated room for new tokens, so that adding one does not copy all the previous ones."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.used = 0
        self._room = room
        self._both: tuple[Tensor, Tensor] | None = None

    @classmethod
    def holding(cls, keys: Tensor, values: Tensor, used: int) -> PreallocatedLayer:
        """A layer whose first `used` columns are filled. `keys` and `values` are (R, heads, T, head size)."""
        layer = cls(keys.shape[2] - used)
        layer._both = (keys, values)
        layer._show(used)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        news, stop = (key_states, value_states), self.used + key_states.shape[2]
        if self._both is None:
            self._both = (self._widened(key_states, 0), self._widened(value_states, 0))
        elif stop > self._both[0].shape[2]:
            self._both = (self._widened(self._both[0], stop), self._widened(self._both[1], stop))
        for whole, new in zip(self._both, news, strict=True):
            whole[:, :, self.used : stop] = new
        self._show(stop)
        return self.keys, self.values

    def select(self, rows: Tensor, first_column: int) -> None:
        """Keep only `rows`, and their columns from `first_column` on."""
        if self._both is not None:
            keys, values = self._both
            rows = rows.to(keys.device)  # of a model that is spread over several, each layer has its own
            self._both = (keys[rows, :, first_column:], values[rows, :, first_column:])
            self._show(self.used - first_column)

    def _widened(self, tensor: Tensor, least: int) -> Tensor:
        rows, heads, columns, size = tensor.shape
        whole = tensor.new_zeros(rows, heads, max(columns + self._room, least), size)
        whole[:, :, :columns] = tensor
        return whole

    def _show(self, used: int) -> None:
        assert self._both is not None
        self.used = used
        self.keys, self.values = (whole[:, :, :used] for whole in self._both)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True


def attends_to_all(model: PreTrainedModel, length: int) -> bool:
    """Whether every layer attends to all of `length` tokens, so that reusing cached keys and values is exact.

    False for layers with another kind of state, and for a sliding window shorter than the text: padding in the middle of a
    row pushed tokens out of the window, and one row of eight gave a different text.
    """
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > length)
        for layer in layers
    )


def layer_count(model: PreTrainedModel) -> int:
    return len(DynamicCache(config=model.config).layers)


def join(beginnings: Sequence[PrefixMatch], layers: int, room: int) -> Cache:
    """One cache of all prefixes, padded on the left with zeros, with room for `room` more tokens.

    Per layer: (R, heads, T + room, head size), where T is the longest prefix.
    """
    width = max(beginning.length for beginning in beginnings)
    if width == 0:
        return Cache(layers=[PreallocatedLayer(room) for _ in range(layers)])
    return Cache(layers=[_joined(beginnings, number, width, room) for number in range(layers)])


def take(cache: Cache, row: int, ids: Sequence[int], columns: slice | Tensor) -> CachedPrefix:
    """Copy the keys and values of one row out of `cache`; its tokens `ids` are in `columns`."""

    def copied(part: Tensor) -> Tensor:
        here = columns.to(part.device) if isinstance(columns, Tensor) else columns
        return part[row][:, here].clone()

    return CachedPrefix(tuple(ids), tuple((copied(layer.keys), copied(layer.values)) for layer in cache.layers))


def _joined(beginnings: Sequence[PrefixMatch], number: int, width: int, room: int) -> PreallocatedLayer:
    like = next(beginning.read for beginning in beginnings if beginning.read is not None).layers[number]
    # keys and values: (R, heads, width + room, head size)
    both = [part.new_zeros(len(beginnings), part.shape[0], width + room, part.shape[2]) for part in like]
    for row, beginning in enumerate(beginnings):
        if beginning.read is not None:
            for whole, part in zip(both, beginning.read.layers[number], strict=True):
                whole[row, :, width - beginning.length : width] = part[:, : beginning.length]
    return PreallocatedLayer.holding(both[0], both[1], width)
