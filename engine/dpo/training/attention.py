"""Attention over shared rows without a mask of all columns.

A row of `engine.dpo.training.shared_prompt` consists of prompt, chosen reply and rejected reply. Prompt and chosen reply
use plain causal attention, for which kernels need no mask and skip everything above the diagonal. The rejected reply
attends to the prompt and to itself, with a mask of its own queries that is made once for all layers. A mask of all columns,
in contrast, is converted to an additive one in every layer, and each layer keeps its copy for the backward pass.

transformers looks up an attention function by its name in the model's configuration, and passes keyword arguments of the
forward pass on to it, which is how the parts of the rows arrive here. Without them, this is transformers' `sdpa`. Imports
torch; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "shared_rows"
"""The name of this attention in a model's configuration."""


@dataclass(frozen=True)
class RowParts:
    """Column ranges of one row: [0, shared) prompt, [shared, chosen_end) chosen reply, [chosen_end, end) rejected reply."""

    shared: int
    chosen_end: int
    end: int
    masks: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, compare=False)

    def mask(self, like: Tensor) -> Tensor:
        """The additive mask of the rejected reply's queries over the keys of prompt and rejected reply: (1, 1, R, P + R)."""
        key = (like.dtype, like.device)
        if key not in self.masks:
            length = self.end - self.chosen_end  # R
            blocked = torch.full((length, self.shared + length), -torch.inf, dtype=like.dtype, device=like.device)
            self.masks[key] = blocked.triu(self.shared + 1)[None, None]  # query i sees keys 0 … P + i
        return self.masks[key]


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Make the model use this attention from now on. Returns False and changes nothing if the model does not use `sdpa`."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, shared_rows_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except ValueError:  # the model allows only certain attention functions
        return False
    return bool(model.config.get_text_config()._attn_implementation == NAME)


def restore_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation("sdpa")


def shared_rows_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_rows: Sequence[RowParts] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query, key and value (B, heads, W, head_dim) to output (B, W, heads, head_dim).

    The output is zero after the end of a row.
    """
    if shared_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return,unused-ignore]
    options.pop("is_causal", None)
    rows = zip(shared_rows, query.split(1), key.split(1), value.split(1), strict=True)
    return _concatenated([_attend_row(module, *row, options) for row in rows], dim=0), None


def _attend_row(
    module: Any, parts: RowParts, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
) -> Tensor:
    """Attention over one row: (1, heads, W, head_dim) each, to (1, W, heads, head_dim)."""
    # Split the columns: prompt and chosen reply (P + C), rejected reply (R), padding.
    sizes = [parts.chosen_end, parts.end - parts.chosen_end, query.shape[2] - parts.end]
    chosen, rejected = zip(*(tensor.split(sizes, dim=2)[:2] for tensor in (query, key, value)), strict=True)
    # Prompt and chosen reply: causal, no mask.
    outputs = [sdpa_attention_forward(module, *chosen, None, is_causal=True, **options)[0]]
    # Rejected reply: R queries over P + R keys.
    if sizes[1]:
        keys, values = (torch.cat([chosen[i][:, :, : parts.shared], rejected[i]], dim=2) for i in (1, 2))
        mask = parts.mask(query)
        outputs.append(sdpa_attention_forward(module, rejected[0], keys, values, mask, is_causal=False, **options)[0])
    # Padding: zeros, which nothing reads.
    if sizes[2]:
        outputs.append(outputs[0].new_zeros(1, sizes[2], *outputs[0].shape[2:]))
    return _concatenated(outputs, dim=1)


def _concatenated(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]
