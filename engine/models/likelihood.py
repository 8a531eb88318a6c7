"""Log-probabilities of given replies, in forward passes without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.machine.memory import free_memory, in_halves
from engine.models.length_groups import TOKENS_PER_FORWARD, group_by_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS_PER_FORWARD = 64 << 20
"""Logits per forward pass: 256 MB in float32. With a large vocabulary they dominate the cost."""

Row = tuple[Sequence[int], Sequence[int]]
"""(token ids of the prompt, token ids of the reply)."""


class Likelihood(NamedTuple):
    """Of a reply after its prompt, in nats, summed over its tokens."""

    logp: float
    entropy: float
    """What −logp would be on average, had the model drawn these tokens itself."""


def reply_likelihoods(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[Likelihood]:
    """How likely each reply is after its prompt, in the order of `rows`.

    Batches rows of similar length, and halves a batch if memory runs out.
    """
    if not rows:
        return []
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = [sum(map(len, row)) for row in rows]
    found: dict[int, Likelihood] = {}
    for group in group_by_length(lengths, TOKENS_PER_FORWARD.get(model.device.type, max(lengths))):
        step = max(1, LOGITS_PER_FORWARD // (vocabulary * (max(len(rows[row][1]) for row in group) + 1)))
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            read = in_halves(lambda part: _likelihoods(model, [rows[row] for row in part], pad), batch, free_memory)
            found.update(zip(batch, read, strict=True))
    return [found[row] for row in range(len(rows))]


def _likelihoods(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[Likelihood]:
    import torch

    longest_reply = max(len(reply) for _, reply in rows)
    ids, mask = _left_padded([[*prompt, *reply] for prompt, reply in rows], pad, model.device)
    with torch.inference_mode():
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=longest_reply + 1,
        ).logits[:, :-1]  # (R, L, V), L the longest reply: the logits before each of its tokens
        targets = ids[:, -longest_reply:]  # (R, L)
        everything = torch.log_softmax(logits.float(), dim=-1)
        entropies = -(everything.exp() * everything).sum(dim=-1)  # (R, L)
        logps = everything.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (R, L)
        # Replies are right-aligned; columns to the left of a shorter one belong to its prompt.
        lengths = torch.tensor([len(reply) for _, reply in rows], device=ids.device)
        of_reply = torch.arange(longest_reply, 0, -1, device=ids.device) <= lengths.unsqueeze(1)
        sums = ((values * of_reply).sum(dim=-1).tolist() for values in (logps, entropies))
        return [Likelihood(*both) for both in zip(*sums, strict=True)]


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token ids, mask), both (R, T)."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
