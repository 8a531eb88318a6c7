"""Generation in batches: what was read is not read again, and a row that has ended its turn leaves the batch.

Imported where it is used: it imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from engine.models.alike import TOKENS_AT_ONCE, alike
from engine.models.generation.kv_cache import given_cache, join, keeps_all, layer_count, take
from engine.models.generation.prefix_cache import (
    WORTH_KEEPING,
    CachedPrefix,
    PrefixCache,
    PrefixMatch,
    common_beginning,
)

CROWDED = 0.75
"""Rows that have ended leave the batch as soon as no more than this share of it is still at work."""

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(scores (R, vocabulary), rows (R,), step) → tokens (R,)."""


@dataclass
class GeneratedRow:
    """What one row has said so far."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether its last token ends the turn."""
    read: CachedPrefix | None = None
    """All of it but the last token, kept for the next call; only if a memory was given."""


def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    ends: Sequence[int],
    limits: Sequence[int],
    *,
    pad: int,
    memory: PrefixCache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[GeneratedRow]:
    """What the model says after each of `prompts` (token ids), in their order.

    ends          tokens that end a turn
    limits        the most tokens of each row
    pad           a token for the columns that nothing looks at
    memory        what was read before, and is kept for the next call; exact, and used only if it is
    should_stop   asked at every token; the rows are then incomplete
    """
    longest = max(map(len, prompts)) + max(limits)
    with torch.inference_mode():
        if keeps_all(model, longest):
            batch, scores = _read_in_groups(model, prompts, max(limits), pad, memory)
        else:
            batch, scores = _read_at_once(model, prompts, pad)
        return _decode_loop(model, batch, scores, choose, set(ends), limits, pad, memory is not None, should_stop)


@dataclass
class _Batch:
    """Rows side by side, padded on the left."""

    prompts: Sequence[Sequence[int]]
    rows: list[int]
    """Which of the prompts stand here."""
    cache: Cache
    mask: Tensor
    """(rows, columns) int: 1 where a token stands."""
    roomy: bool
    """Whether rows can be taken out of the cache."""

    @property
    def columns(self) -> int:
        return int(self.mask.shape[1])

    def forward(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Read one token a row; returns the scores of what follows, (rows, vocabulary)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        return _scores(model, tokens.unsqueeze(1), self.mask, self.cache)

    def take(self, place: int, said: GeneratedRow) -> CachedPrefix:
        """What was read of the row at `place`: its prompt and all that it said but the last token."""
        ids = [*self.prompts[self.rows[place]], *said.ids[:-1]]
        first = int(self.mask[place].argmax())
        return take(self.cache, place, ids, slice(first, first + len(ids)))

    def leave_only(self, places: list[int]) -> None:
        """Drop the other rows, and the columns that only they filled."""
        kept = torch.tensor(places, device=self.mask.device)
        mask = self.mask[kept]
        first_column = int(mask.argmax(dim=1).min())
        self.mask = mask[:, first_column:].contiguous()
        self.rows = [self.rows[place] for place in places]
        for layer in self.cache.layers:
            layer.select(kept, first_column)


def _decode_loop(
    model: PreTrainedModel,
    batch: _Batch,
    scores: Tensor,
    choose: Choose,
    ends: set[int],
    limits: Sequence[int],
    pad: int,
    keep: bool,
    should_stop: Callable[[], bool],
) -> list[GeneratedRow]:
    said = [GeneratedRow() for _ in batch.prompts]
    for step in range(max(limits)):
        tokens = choose(scores, torch.tensor(batch.rows, device=scores.device), step)
        at_work = []
        for place, token in enumerate(tokens.tolist()):
            row = batch.rows[place]
            if _at_work(said[row], limits[row]):
                said[row].ids.append(token)
                said[row].ended = token in ends
                if _at_work(said[row], limits[row]):
                    at_work.append(place)
                elif keep and batch.roomy:
                    said[row].read = batch.take(place, said[row])
        if not at_work or should_stop():
            break
        if batch.roomy and len(at_work) <= CROWDED * len(batch.rows):
            batch.leave_only(at_work)
            tokens = tokens[torch.tensor(at_work, device=tokens.device)]
        scores = batch.forward(model, tokens)
    return said


def _at_work(said: GeneratedRow, limit: int) -> bool:
    return not said.ended and len(said.ids) < limit


def _read_in_groups(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], room: int, pad: int, memory: PrefixCache | None
) -> tuple[_Batch, Tensor]:
    """Read all prompts from where memory ends, those of like length side by side; then join them into one batch."""
    memory = memory or PrefixCache()
    _share_beginning(model, prompts, memory)
    beginnings = [memory.longest(prompt) for prompt in prompts]
    reads: dict[int, CachedPrefix] = {}
    scores: dict[int, Tensor] = {}
    rests = [len(prompt) - begun.length for prompt, begun in zip(prompts, beginnings, strict=True)]
    for group in alike(rests, TOKENS_AT_ONCE.get(model.device.type, max(rests))):
        found = _read(model, [prompts[row] for row in group], [beginnings[row] for row in group], pad)
        for row, (read, last) in zip(group, found, strict=True):
            reads[row], scores[row] = read, last
    rows = range(len(prompts))
    whole = [PrefixMatch(reads[row], len(prompts[row])) for row in rows]
    mask = _left_padded([[1] * len(prompt) for prompt in prompts], 0, model.device)
    cache = join(whole, layer_count(model), room)
    return _Batch(prompts, list(rows), cache, mask, roomy=True), torch.stack([scores[row] for row in rows])


def _share_beginning(model: PreTrainedModel, prompts: Sequence[Sequence[int]], memory: PrefixCache) -> None:
    """Read what all prompts begin with once, if that is more than memory has of any of them."""
    if len(prompts) < 2:
        return
    shared = common_beginning(prompts)[: min(map(len, prompts)) - 1]
    if len(shared) >= WORTH_KEEPING and len(shared) > min(memory.longest(prompt).length for prompt in prompts):
        ((read, _),) = _read(model, [shared], [memory.longest(shared)], pad=0)
        memory.share(read)


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], beginnings: Sequence[PrefixMatch], pad: int
) -> list[tuple[CachedPrefix, Tensor]]:
    """Read the rest of each prompt after its beginning; returns what is kept of it, and the scores of what follows it."""
    rests = [prompt[begun.length :] for prompt, begun in zip(prompts, beginnings, strict=True)]
    rest_width = max(map(len, rests))
    cache = join(beginnings, layer_count(model), rest_width)
    width = max(begun.length for begun in beginnings)
    before = _left_padded([[1] * begun.length for begun in beginnings], 0, model.device, width)
    mask = torch.cat([before, _left_padded([[1] * len(rest) for rest in rests], 0, model.device)], dim=1)
    scores = _scores(model, _left_padded(rests, pad, model.device), mask, cache)
    columns = [row.nonzero().squeeze(-1) for row in mask]
    return [(take(cache, row, prompt, columns[row]), scores[row]) for row, prompt in enumerate(prompts)]


def _read_at_once(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> tuple[_Batch, Tensor]:
    """Read all prompts as one batch into the model's own kind of cache."""
    mask = _left_padded([[1] * len(prompt) for prompt in prompts], 0, model.device)
    cache = DynamicCache(config=model.config)
    batch = _Batch(prompts, list(range(len(prompts))), cache, mask, roomy=False)
    return batch, _scores(model, _left_padded(prompts, pad, model.device), mask, cache)


def _scores(model: PreTrainedModel, tokens: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    """Read `tokens` (R, N), the last N columns of `mask`; returns the scores after the last one, (R, vocabulary)."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    output = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **given_cache(model, cache),
    )
    scores: Tensor = output.logits[:, -1]
    return scores


def _left_padded(rows: Sequence[Sequence[int]], filler: int, device: torch.device, width: int | None = None) -> Tensor:
    """(R, width) int: every row at the right end."""
    width = max(map(len, rows)) if width is None else width
    return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
