"""How likely a model finds given replies to given conversations: read, never decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.machine.memory import free_memory, in_halves
from engine.models.alike import TOKENS_AT_ONCE, alike

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS_AT_ONCE = 64 << 20
"""Numbers: 256 MB in float32. A large vocabulary makes them the dearest part of a pass."""

Row = tuple[Sequence[int], Sequence[int]]
"""(the prompt's token ids, the reply's)."""


def reply_logps(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[float]:
    """Of each reply: its log-probability after its prompt, in nats, summed over its tokens. In the order of `rows`.

    Rows of like length are read side by side; a batch is halved if memory runs out.
    """
    if not rows:
        return []
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = [sum(map(len, row)) for row in rows]
    found: dict[int, float] = {}
    for group in alike(lengths, TOKENS_AT_ONCE.get(model.device.type, max(lengths))):
        step = max(1, LOGITS_AT_ONCE // (vocabulary * (max(len(rows[row][1]) for row in group) + 1)))
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            logps = in_halves(lambda part: _logps(model, [rows[row] for row in part], pad), batch, free_memory)
            found.update(zip(batch, logps, strict=True))
    return [found[row] for row in range(len(rows))]


def _logps(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> list[float]:
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
        ).logits[:, :-1]  # (rows, longest reply, vocabulary): what comes before each token of the reply
        targets = ids[:, -longest_reply:]
        logps = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        # The replies stand at the right end; what is left of a shorter one belongs to its prompt.
        lengths = torch.tensor([len(reply) for _, reply in rows], device=ids.device)
        of_reply = torch.arange(longest_reply, 0, -1, device=ids.device) <= lengths.unsqueeze(1)
        return [float(value) for value in (logps * of_reply).sum(dim=-1).tolist()]


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (rows, longest)."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
