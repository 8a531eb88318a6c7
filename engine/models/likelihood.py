"""Log-probabilities of given replies, in forward passes without decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.machine.memory import free_memory, in_halves
from engine.models.length_groups import TOKENS_PER_FORWARD, group_by_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS_PER_FORWARD = 64 << 20
"""Logits per forward pass: 256 MB in float32. With a large vocabulary they dominate the cost."""

OfLabels = Callable[["PreTrainedModel", "dict[str, Tensor | bool]", "Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""(model, arguments of a forward pass, labels (R, L), which of them are of a reply) -> (log-probabilities, entropies) of
those, each (N,).
"""

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
    plain: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    of_labels = _reader(plain)
    vocabulary = int(plain.config.get_text_config().vocab_size) if of_labels is _from_logits else 1
    lengths = [sum(map(len, row)) for row in rows]
    found: dict[int, Likelihood] = {}
    for group in group_by_length(lengths, TOKENS_PER_FORWARD.get(model.device.type, max(lengths))):
        step = max(1, LOGITS_PER_FORWARD // (vocabulary * (max(len(rows[row][1]) for row in group) + 1)))
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            read = in_halves(
                lambda part: _likelihoods(plain, of_labels, [rows[row] for row in part], pad), batch, free_memory
            )
            found.update(zip(batch, read, strict=True))
    return [found[row] for row in range(len(rows))]


def _reader(model: PreTrainedModel) -> OfLabels:
    """On a GPU a matrix product in float32 would be slower than logits in the model's format."""
    if model.device.type == "cuda":
        return _from_logits
    from engine.models.head import explains_logits

    return _in_tiles if explains_logits(model) else _from_logits


def _likelihoods(model: PreTrainedModel, of_labels: OfLabels, rows: Sequence[Row], pad: int) -> list[Likelihood]:
    import torch

    longest_reply = max(len(reply) for _, reply in rows)
    ids, mask = _left_padded([[*prompt, *reply] for prompt, reply in rows], pad, model.device)
    asked = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=-1) - 1).clamp_min(0),
        "use_cache": False,
    }
    # Replies are right-aligned; columns to the left of a shorter one belong to its prompt.
    lengths = torch.tensor([len(reply) for _, reply in rows], device=ids.device)
    of_reply = torch.arange(longest_reply, 0, -1, device=ids.device) <= lengths.unsqueeze(1)  # (R, L)
    with torch.inference_mode():
        figures = of_labels(model, asked, ids[:, -longest_reply:], of_reply)
        sums = (
            torch.zeros(of_reply.shape, device=ids.device).masked_scatter(of_reply, values).sum(dim=-1).tolist()
            for values in figures
        )
        return [Likelihood(*both) for both in zip(*sums, strict=True)]


def _in_tiles(
    model: PreTrainedModel, asked: dict[str, Tensor | bool], targets: Tensor, of_reply: Tensor
) -> tuple[Tensor, Tensor]:
    from engine.models.head import head_of, label_figures

    head = head_of(model)
    assert head is not None  # `_reader` found one
    before = model.base_model(**asked).last_hidden_state[:, -targets.shape[1] - 1 : -1]  # (R, L, H)
    figures = label_figures(head, before[of_reply], targets[of_reply])
    return figures.logps, figures.entropy


def _from_logits(
    model: PreTrainedModel, asked: dict[str, Tensor | bool], targets: Tensor, of_reply: Tensor
) -> tuple[Tensor, Tensor]:
    import torch

    logits = model(**asked, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]  # (R, L, V): before each token
    everything = torch.log_softmax(logits[of_reply].float(), dim=-1)  # (N, V)
    entropies = -torch.linalg.vecdot(everything.exp(), everything)
    return everything.gather(-1, targets[of_reply].unsqueeze(-1)).squeeze(-1), entropies


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(token ids, mask), both (R, T)."""
    import torch

    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
