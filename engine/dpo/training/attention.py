"""Attention of shared rows without a mask of all their columns.

A row of `engine.dpo.training.shared_prompt` is prompt, chosen reply, rejected reply. Prompt and chosen reply are plain causal
attention, for which the kernels take no mask and skip what is above the diagonal. The rejected reply attends to the prompt and to
itself: a mask of its own columns only, made once for all layers. A mask of all columns instead is converted to numbers in every
layer, and each of them keeps its copy for the backward pass.

transformers calls an attention by its name in the model's configuration, and hands on keyword arguments of the forward pass: so
the parts of the rows arrive here. Without them this is transformers' `sdpa`. Imports torch; import it where it is used.
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
"""In the configuration of a model that attends this way."""


@dataclass(frozen=True)
class RowParts:
    """One row: columns 0 … `shared` are the prompt, up to `chosen_end` the chosen reply, up to `end` the rejected one."""

    shared: int
    chosen_end: int
    end: int
    masks: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, compare=False)

    def mask(self, like: Tensor) -> Tensor:
        """(1, 1, rejected columns, shared + rejected columns), to be added: what each column of the rejected reply sees."""
        key = (like.dtype, like.device)
        if key not in self.masks:
            count = self.end - self.chosen_end
            hidden = torch.full((count, self.shared + count), -torch.inf, dtype=like.dtype, device=like.device)
            self.masks[key] = hidden.triu(self.shared + 1)[None, None]
        return self.masks[key]


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Make the model use this attention from now on. False, and no change, if its own is another than `sdpa`."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, shared_rows_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except ValueError:  # a model that allows only attentions it knows
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
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (B, heads, W, head size) each, to (B, W, heads, head size). Columns after the end of a
    row get zeros.
    """
    if shared_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)  # type: ignore[no-any-return,unused-ignore]
    more.pop("is_causal", None)
    rows = zip(shared_rows, query.split(1), key.split(1), value.split(1), strict=True)
    return _joined([_row(module, parts, query, key, value, more) for parts, query, key, value in rows], dim=0), None


def _row(module: Any, parts: RowParts, query: Tensor, key: Tensor, value: Tensor, more: dict[str, Any]) -> Tensor:
    sizes = [parts.chosen_end, parts.end - parts.chosen_end, query.shape[2] - parts.end]
    chosen, rejected = zip(*(tensor.split(sizes, dim=2)[:2] for tensor in (query, key, value)), strict=True)
    found = [sdpa_attention_forward(module, *chosen, None, is_causal=True, **more)[0]]
    if sizes[1]:
        keys, values = (torch.cat([chosen[i][:, :, : parts.shared], rejected[i]], dim=2) for i in (1, 2))
        mask = parts.mask(query)
        found.append(sdpa_attention_forward(module, rejected[0], keys, values, mask, is_causal=False, **more)[0])
    if sizes[2]:
        found.append(found[0].new_zeros(1, sizes[2], *found[0].shape[2:]))
    return _joined(found, dim=1)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]
