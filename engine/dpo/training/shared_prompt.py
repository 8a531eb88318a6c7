"""Read a pair's prompt once for both replies, with the same result as reading it twice.

Plain DPO reads two rows, prompt + chosen and prompt + rejected. Here they are one row: the mask hides the first reply from
the second, whose positions continue where the shared prefix ended:

    rows of the collator          one row                                positions
    <bos> Hi ! Good day .         <bos> Hi ! Good day | Nothing          0 1 2 3 4 | 3
    <bos> Hi ! Nothing .

Attention is causal, so every hidden state is the same as before, and both replies' gradients add up in the shared prompt
instead of over two copies. The last token of a reply is not read, because nothing is predicted from it. Only states that
predict a token of a reply go through the head.

Imported where it is used: it imports torch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from engine.models.generation.kv_cache import keeps_all

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NO_LABEL = -100
"""What TRL puts in the labels where nothing is to be predicted."""
MASKED_ATTENTION = ("sdpa", "eager")
"""The attention functions that take any mask; flash attention knows only causal ones."""
OF_A_BATCH = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
"""All that TRL asks of a text model; if more is asked, it is answered in the plain way."""
SAME_IN_FLOAT32, SAME_IN_HALF = 1e-3, 0.1
"""Nats a token, on average; a model that is blind to mask or positions is off by more."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class SharedRows:
    """B pairs as B rows of W columns: what both have in common, the rest of the chosen text, the rest of the rejected."""

    tokens: Tensor
    """(B, W) ids; what stands behind the end of a row is seen by nothing before it."""
    positions: Tensor
    """(B, W): where the token stands in its own text."""
    sees: Tensor
    """(B, 1, W, W) bool: whether the query of a row attends to the key of a column."""
    scored: Tensor
    """(N,) columns of the flattened rows, whose hidden states predict a token of a reply."""
    labels: Tensor
    """(N,) ids that they predict."""
    places: Tensor
    """(2B, T - 1): where among the N the figures of that place of the collator's rows are found; N where it has no label."""


def pack_shared_prompt(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SharedRows:
    """The rows of a collated batch, all (2B, T), B chosen before B rejected and padded on the right, as shared rows."""
    ends = attention_mask.sum(dim=1) - 1  # the last token predicts nothing
    chosen_end, rejected_end = ends.unsqueeze(1).chunk(2)
    chosen, rejected = input_ids.chunk(2)
    chosen_labels, rejected_labels = labels.chunk(2)
    same = (chosen == rejected) & (chosen_labels == rejected_labels)
    shared = torch.minimum(same.cumprod(dim=1).sum(dim=1, keepdim=True), torch.minimum(chosen_end, rejected_end))

    column = torch.arange(int((chosen_end + rejected_end - shared).max()), device=input_ids.device).unsqueeze(0)
    in_rejected = column >= chosen_end
    positions = torch.where(in_rejected, column - chosen_end + shared, column).clamp(max=input_ids.shape[1] - 1)
    tokens = torch.where(in_rejected, rejected.gather(1, positions), chosen.gather(1, positions))
    only_chosen = (column >= shared) & ~in_rejected
    hidden = in_rejected.unsqueeze(2) & only_chosen.unsqueeze(1)
    sees = (column.unsqueeze(2) >= column.unsqueeze(1)) & ~hidden

    place = torch.arange(input_ids.shape[1] - 1, device=input_ids.device).unsqueeze(0)
    first = torch.arange(len(chosen), device=input_ids.device).unsqueeze(1) * column.shape[1]
    of_rejected = torch.where(place < shared, place, place - shared + chosen_end)
    columns = torch.cat([place.expand_as(of_rejected), of_rejected]) + first.repeat(2, 1)
    wanted = labels[:, 1:] != NO_LABEL
    # A label within the shared beginning is scored once, with the chosen text.
    common = torch.cat([torch.zeros_like(wanted[: len(chosen)]), place + 1 < shared])
    scored = wanted & ~common
    numbers = (scored.flatten().cumsum(dim=0) - 1).view_as(scored)
    numbers = torch.where(common, numbers[: len(chosen)].repeat(2, 1), numbers)
    return SharedRows(
        tokens,
        positions,
        sees.unsqueeze(1),
        columns[scored],
        labels[:, 1:][scored],
        torch.where(wanted, numbers, int(scored.sum())),
    )


def share_prompt_computation(policy: PeftModel) -> bool:
    """Let a model that TRL's trainer was built on read pairs as shared rows wherever it is called as TRL calls it: in steps, for
    the reference, in the evaluation. Returns False, and changes nothing, if its attention takes no mask of ours, or if
    a small batch comes out otherwise. A batch that is longer than a sliding window is read in the plain way.
    """
    model = policy.get_base_model()
    as_it_was = model.forward

    @functools.wraps(as_it_was)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = {name for name, value in kwargs.items() if value is not None}
        if args or not kwargs.get("fused_lm_head") or not given <= OF_A_BATCH:
            return as_it_was(*args, **kwargs)
        if not keeps_all(model, kwargs["input_ids"].shape[1]):
            return as_it_was(*args, **kwargs)
        return _score(model, as_it_was, kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])

    if not _can_be_told_what_it_sees(model) or not _says_the_same(model, as_it_was, forward):
        return False
    model.forward = forward
    return True


def _can_be_told_what_it_sees(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return (
        config._attn_implementation in MASKED_ATTENTION
        and "position_ids" in inspect.signature(type(model.base_model).forward).parameters
        and not getattr(config, "output_router_logits", False)  # experts are balanced over a 2D mask
    )


def _says_the_same(model: PreTrainedModel, plain: Callable[..., Any], shared: Callable[..., Any]) -> bool:
    """Whether two pairs of a few tokens get the same log-probabilities either way. It catches what takes a mask and a position
    and then does something else with them; the last bits are not compared here (tests/dpo/test_shared_prompt.py does).
    """
    ids = torch.tensor(
        [[2, 5, 3, 7, 4, 6, 9, 8], [3, 3, 6, 0, 0, 0, 0, 0], [2, 5, 3, 7, 9, 9, 0, 0], [3, 3, 7, 5, 2, 8, 0, 0]]
    )
    ids = ids.to(model.device)
    asked = {"input_ids": ids, "attention_mask": (ids > 0).long(), "fused_lm_head": True}
    labels = ids.masked_fill(ids == 0, NO_LABEL)
    labels[::2, :3] = labels[1::2, :2] = NO_LABEL
    try:
        with torch.no_grad():
            difference = plain(**asked, labels=labels).log_probs - shared(**asked, labels=labels).log_probs
    except (ValueError, TypeError, RuntimeError, IndexError):
        return False
    return bool(difference.abs().mean() < (SAME_IN_FLOAT32 if model.dtype == torch.float32 else SAME_IN_HALF))


def _score(
    model: PreTrainedModel, fused: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> FusedCausalLMOutput:
    """The per-token figures (2B, T - 1) of TRL's fused head, by way of shared rows."""
    rows = pack_shared_prompt(input_ids, attention_mask, labels)

    def leave_the_scored(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[rows.scored].unsqueeze(0)
        return output

    backbone = model.base_model.register_forward_hook(leave_the_scored)
    try:
        found = fused(
            input_ids=rows.tokens,
            attention_mask=_as_taken(rows.sees, model),
            position_ids=rows.positions,
            shift_labels=rows.labels.unsqueeze(0),
            fused_lm_head=True,
        )
    finally:
        backbone.remove()
    return FusedCausalLMOutput(
        **{name: _in_place(getattr(found, name), rows.places) for name in PER_TOKEN},
        label_mask=labels[:, 1:] != NO_LABEL,
    )


def _in_place(figures: Tensor | None, places: Tensor) -> Tensor | None:
    """(1, N) figures to (2B, T - 1), zero where there is no label."""
    return None if figures is None else torch.cat([figures[0], figures.new_zeros(1)])[places]


def _as_taken(sees: Tensor, model: PreTrainedModel) -> Tensor:
    """The mask as the model's attention takes it: sdpa a bool, eager what is added to the scores."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return sees
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(sees.shape, dtype=model.dtype, device=sees.device).masked_fill(~sees, lowest)
