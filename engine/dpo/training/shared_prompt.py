"""Read a pair's prompt once for both replies, with the same result as reading it twice.

Plain DPO reads two rows, prompt + chosen and prompt + rejected. Here they share one row. The mask hides the chosen reply
from the rejected one, whose positions continue where the shared prefix ends:

    the collator's rows           the shared row                         positions
    <bos> Hi ! Good day .         <bos> Hi ! Good day | Nothing          0 1 2 3 4 | 3
    <bos> Hi ! Nothing .

Attention is causal, so every hidden state stays the same, and the gradients of both replies add up in the shared prompt
instead of in two copies. The last token of a reply is not read, because nothing is predicted from it. Only hidden states
that predict a token of a reply go through the head. Long rows attend without the mask (`engine.dpo.training.attention`).

Shapes: B pairs, T columns of the collator's rows, W columns of the shared rows, N scored tokens, H hidden size. Imports
torch; import it where it is used.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from engine.dpo.planning.forecast import rows_from
from engine.dpo.training.attention import RowParts, attend_by_rows, restore_attention
from engine.dpo.training.head import NO_LABEL
from engine.models.generation.kv_cache import attends_to_all

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations that accept any mask; flash attention supports only causal ones."""
TRL_ARGUMENTS = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
"""The arguments that TRL passes to a text model. A call with any other argument takes the plain path."""
TOLERANCE_FLOAT32, TOLERANCE_HALF = 1e-3, 0.1
"""Mean difference in nats per token; a model that ignores mask or positions differs by more."""
PER_TOKEN_FIGURES = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class SharedRows:
    """B pairs as B rows of W columns: the common prefix, the rest of the chosen text, the rest of the rejected text."""

    tokens: Tensor
    """(B, W) token ids; no column attends to the padding after the end of its row."""
    positions: Tensor
    """(B, W) positions of the tokens in their own text."""
    shared: Tensor
    """(B, 1) lengths of the common prefixes."""
    chosen_end: Tensor
    """(B, 1) columns after the chosen texts."""
    end: Tensor
    """(B, 1) columns after the rejected texts."""
    scored: Tensor
    """(N,) indices of the hidden states, flattened to (B * W, H), that predict a token of a reply."""
    labels: Tensor
    """(N,) token ids that they predict."""
    places: Tensor
    """(2B, T - 1) index among the N scored tokens for each place in the collator's rows; N where there is no label."""

    @property
    def sees(self) -> Tensor:
        """(B, 1, W, W) bool: whether a query (dim 2) attends to a key (dim 3). It is causal, and the rejected text does not
        see the chosen text after the prefix.
        """
        column = torch.arange(self.tokens.shape[1], device=self.tokens.device).unsqueeze(0)  # (1, W)
        in_rejected = column >= self.chosen_end  # (B, W)
        only_chosen = (column >= self.shared) & ~in_rejected  # (B, W)
        hidden = in_rejected.unsqueeze(2) & only_chosen.unsqueeze(1)  # (B, W, W)
        causal = column.unsqueeze(2) >= column.unsqueeze(1)  # (1, W, W)
        return (causal & ~hidden).unsqueeze(1)

    def parts(self) -> list[RowParts]:
        """The boundaries of each row's parts."""
        bounds = torch.cat([self.shared, self.chosen_end, self.end], dim=1).tolist()  # (B, 3)
        return [RowParts(shared, chosen_end, end) for shared, chosen_end, end in bounds]


def pack_shared_prompt(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SharedRows:
    """Pack a collated batch into shared rows. All arguments are (2B, T): B chosen before B rejected, padded on the right."""
    # 1. Lengths of the texts without their last token, from which nothing is predicted, and of their common prefix.
    chosen_end, rejected_end = (attention_mask.sum(dim=1, keepdim=True) - 1).chunk(2)  # (B, 1) each
    chosen, rejected = input_ids.chunk(2)  # (B, T) each
    chosen_labels, rejected_labels = labels.chunk(2)
    same = (chosen == rejected) & (chosen_labels == rejected_labels)  # (B, T)
    same_length = same.cumprod(dim=1).sum(dim=1, keepdim=True)  # (B, 1) columns before the first difference
    shared = torch.minimum(same_length, torch.minimum(chosen_end, rejected_end))  # (B, 1)

    # 2. Shared rows: up to chosen_end, columns hold the chosen text; after it, the rejected text without the prefix.
    end = chosen_end + rejected_end - shared  # (B, 1)
    column = torch.arange(int(end.max()), device=input_ids.device).unsqueeze(0)  # (1, W)
    in_rejected = column >= chosen_end  # (B, W)
    positions = torch.where(in_rejected, column - chosen_end + shared, column)  # (B, W)
    positions = positions.clamp(max=input_ids.shape[1] - 1)  # columns after the end of a row
    tokens = torch.where(in_rejected, rejected.gather(1, positions), chosen.gather(1, positions))  # (B, W)

    # 3. For each place in the collator's rows, the index of its hidden state among all B * W.
    place = torch.arange(input_ids.shape[1] - 1, device=input_ids.device).unsqueeze(0)  # (1, T - 1)
    row_start = torch.arange(len(chosen), device=input_ids.device).unsqueeze(1) * column.shape[1]  # (B, 1)
    rejected_columns = torch.where(place < shared, place, place - shared + chosen_end)  # (B, T - 1)
    columns = torch.cat([place.expand_as(rejected_columns), rejected_columns])  # (2B, T - 1)
    states = columns + row_start.repeat(2, 1)  # (2B, T - 1)

    # 4. Number the N scored places. A label within the shared prefix is scored once, with the chosen text.
    has_label = labels[:, 1:] != NO_LABEL  # (2B, T - 1)
    in_prefix = place + 1 < shared  # (B, T - 1)
    in_prefix = torch.cat([torch.zeros_like(in_prefix), in_prefix])  # (2B, T - 1): of rejected texts only
    scored = has_label & ~in_prefix  # (2B, T - 1)
    numbers = (scored.flatten().cumsum(dim=0) - 1).view_as(scored)  # (2B, T - 1)
    numbers = torch.where(in_prefix, numbers[: len(chosen)].repeat(2, 1), numbers)
    return SharedRows(
        tokens,
        positions,
        shared,
        chosen_end,
        end,
        states[scored],
        labels[:, 1:][scored],
        torch.where(has_label, numbers, int(scored.sum())),
    )


def share_prompt_computation(policy: PeftModel) -> bool:
    """Make a model that TRL's trainer was built on read pairs as shared rows whenever it is called as TRL calls it: in
    training steps, for the reference, and in the evaluation.

    Returns False and changes nothing if the model's attention does not accept our mask, or if a small batch gives different
    results. Batches longer than a sliding window take the plain path. Long rows need no mask, if that gives the same
    results, too.
    """
    model = policy.get_base_model()
    plain_forward = model.forward
    by_rows_from: int | None = None

    @functools.wraps(plain_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        passed = {name for name, value in kwargs.items() if value is not None}
        if args or not kwargs.get("fused_lm_head") or not passed <= TRL_ARGUMENTS:
            return plain_forward(*args, **kwargs)
        ids = kwargs["input_ids"]
        if not attends_to_all(model, ids.shape[1]):
            return plain_forward(*args, **kwargs)
        by_rows = by_rows_from is not None and ids.shape[1] >= by_rows_from
        return _score_shared_rows(
            model, plain_forward, ids, kwargs["attention_mask"], kwargs["labels"], by_rows=by_rows
        )

    if not _accepts_custom_mask(model):
        return False
    plain = _logps_of_a_small_batch(policy)
    model.forward = forward
    if plain is None or not _same(plain, _logps_of_a_small_batch(policy), model.dtype):
        model.forward = plain_forward
        return False
    if attend_by_rows(model):
        by_rows_from = 0  # so that the small batch uses it
        if _same(plain, _logps_of_a_small_batch(policy), model.dtype):
            by_rows_from = rows_from(policy.device.type)
        else:
            by_rows_from = None
            restore_attention(model)
    return True


def _accepts_custom_mask(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return (
        config._attn_implementation in MASKED_ATTENTION
        and "position_ids" in inspect.signature(type(model.base_model).forward).parameters
        and not getattr(config, "output_router_logits", False)  # the experts' balancing loss needs a 2D mask
    )


def _same(plain: Tensor, shared: Tensor | None, dtype: torch.dtype) -> bool:
    """Detects models that accept a mask and positions but use them differently. Exact equality is tested in
    tests/dpo/test_shared_prompt.py.
    """
    tolerance = TOLERANCE_FLOAT32 if dtype == torch.float32 else TOLERANCE_HALF
    return shared is not None and bool((plain - shared).abs().mean() < tolerance)


def _logps_of_a_small_batch(policy: PeftModel) -> Tensor | None:
    """Log-probabilities (4, 7) of two short pairs, computed as TRL's trainer does; None if the model raises an error."""
    ids = torch.tensor(
        [[2, 5, 3, 7, 4, 6, 9, 8], [3, 3, 6, 0, 0, 0, 0, 0], [2, 5, 3, 7, 9, 9, 0, 0], [3, 3, 7, 5, 2, 8, 0, 0]]
    )
    ids = ids.to(policy.device)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "fused_lm_head": True}
    labels = ids.masked_fill(ids == 0, NO_LABEL)
    labels[::2, :3] = labels[1::2, :2] = NO_LABEL
    try:
        with torch.no_grad():
            logps: Tensor = policy(**inputs, labels=labels).log_probs
            return logps
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None


def _score_shared_rows(
    model: PreTrainedModel,
    fused: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    *,
    by_rows: bool = False,
) -> FusedCausalLMOutput:
    """Per-token figures of TRL's fused head, (2B, T - 1) each, computed on shared rows.

    fused     the model's forward pass with the fused head
    by_rows   whether to pass the rows' parts in place of a mask, because the model attends by rows
    """
    rows = pack_shared_prompt(input_ids, attention_mask, labels)
    attention = (
        {"attention_mask": torch.ones_like(rows.tokens), "shared_rows": rows.parts()}
        if by_rows
        else {"attention_mask": _attention_mask(rows.sees, model)}
    )

    def keep_scored(_: Any, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state.flatten(0, 1).to(rows.scored.device)  # (B * W, H)
        output.last_hidden_state = hidden[rows.scored].unsqueeze(0)  # (1, N, H)
        return output

    hook = model.base_model.register_forward_hook(keep_scored)
    try:
        output = fused(
            input_ids=rows.tokens,
            position_ids=rows.positions,
            shift_labels=rows.labels.unsqueeze(0),
            fused_lm_head=True,
            **attention,
        )
    finally:
        hook.remove()
    return FusedCausalLMOutput(
        **{name: _unpacked(getattr(output, name), rows.places) for name in PER_TOKEN_FIGURES},
        label_mask=labels[:, 1:] != NO_LABEL,
    )


def _unpacked(figures: Tensor | None, places: Tensor) -> Tensor | None:
    """Figures (1, N) at their places in the collator's rows (2B, T - 1); 0 where there is no label."""
    return None if figures is None else torch.cat([figures[0], figures.new_zeros(1)])[places]


def _attention_mask(sees: Tensor, model: PreTrainedModel) -> Tensor:
    """The mask in the form that the model's attention expects: additive for eager attention, else bool."""
    if model.config.get_text_config()._attn_implementation != "eager":
        return sees
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(sees.shape, dtype=model.dtype, device=sees.device).masked_fill(~sees, lowest)
