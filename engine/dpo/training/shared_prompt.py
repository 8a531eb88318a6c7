"""Read a pair's prompt once for both replies, with the same result as reading it twice.

Plain DPO reads two rows, prompt + chosen and prompt + rejected. Here they share one row. The mask hides the first reply from the
second, whose positions continue where the shared prefix ended:

    rows of the collator          one row                                positions
    <bos> Hi ! Good day .         <bos> Hi ! Good day | Nothing          0 1 2 3 4 | 3
    <bos> Hi ! Nothing .

Attention is causal, so every hidden state is unchanged, and the gradients of both replies add up in the shared prompt instead of
in two copies. The last token of a reply is not read, because nothing is predicted from it. Only hidden states that predict a
token of a reply go through the head. Long rows attend without that mask (`engine.dpo.training.attention`).

Letters for shapes: B pairs, T columns of the collator's rows, W columns of the shared rows, N scored tokens. Imports torch;
import it where it is used.
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
from engine.dpo.training.attention import RowParts, attend_as_before, attend_by_rows
from engine.dpo.training.head import NO_LABEL
from engine.models.generation.kv_cache import attends_to_all

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take any mask; flash attention supports only causal ones."""
TRL_ARGUMENTS = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
"""The arguments that TRL passes to a text model. A call with any others takes the plain path."""
TOLERANCE_FLOAT32, TOLERANCE_HALF = 1e-3, 0.1
"""Mean difference in nats per token; a model that ignores mask or positions differs by more."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class SharedRows:
    """B pairs as B rows of W columns: the common prefix, the rest of the chosen text, the rest of the rejected text."""

    tokens: Tensor
    """(B, W) ids; columns after the end of a row are not attended to by any before it."""
    positions: Tensor
    """(B, W) position of each token in its own text."""
    shared: Tensor
    """(B, 1) length of the common prefix."""
    chosen_end: Tensor
    """(B, 1) the column after the chosen text."""
    end: Tensor
    """(B, 1) the column after the rejected text."""
    scored: Tensor
    """(N,) indices into the flattened (B * W) hidden states that predict a token of a reply."""
    labels: Tensor
    """(N,) ids that they predict."""
    places: Tensor
    """(2B, T - 1) maps each place in the collator's rows to its index among the N; N where there is no label."""

    @property
    def sees(self) -> Tensor:
        """(B, 1, W, W) bool: whether a query (row) attends to a key (column). Causal, and the rejected text does not see the
        chosen text after the prefix.
        """
        column = torch.arange(self.tokens.shape[1], device=self.tokens.device).unsqueeze(0)
        in_rejected = column >= self.chosen_end
        only_chosen = (column >= self.shared) & ~in_rejected
        hidden = in_rejected.unsqueeze(2) & only_chosen.unsqueeze(1)
        return ((column.unsqueeze(2) >= column.unsqueeze(1)) & ~hidden).unsqueeze(1)

    def parts(self) -> list[RowParts]:
        """The same as lengths."""
        lengths = torch.cat([self.shared, self.chosen_end, self.end], dim=1).tolist()
        return [RowParts(shared, chosen_end, end) for shared, chosen_end, end in lengths]


def pack_shared_prompt(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SharedRows:
    """Pack a collated batch into shared rows. All arguments are (2B, T): B chosen before B rejected, padded on the right."""
    # 1. Length of each text without its last token, which predicts nothing, and of the prefix that both share: (B, 1).
    ends = attention_mask.sum(dim=1) - 1
    chosen_end, rejected_end = ends.unsqueeze(1).chunk(2)
    chosen, rejected = input_ids.chunk(2)
    chosen_labels, rejected_labels = labels.chunk(2)
    same = (chosen == rejected) & (chosen_labels == rejected_labels)
    shared = torch.minimum(same.cumprod(dim=1).sum(dim=1, keepdim=True), torch.minimum(chosen_end, rejected_end))

    # 2. The shared rows: columns up to chosen_end are the chosen text, the others the rejected text after the prefix. (B, W)
    end = chosen_end + rejected_end - shared
    column = torch.arange(int(end.max()), device=input_ids.device).unsqueeze(0)
    in_rejected = column >= chosen_end
    positions = torch.where(in_rejected, column - chosen_end + shared, column).clamp(max=input_ids.shape[1] - 1)
    tokens = torch.where(in_rejected, rejected.gather(1, positions), chosen.gather(1, positions))

    # 3. For each place of the collator's rows, the index of its hidden state among the B * W: (2B, T - 1).
    place = torch.arange(input_ids.shape[1] - 1, device=input_ids.device).unsqueeze(0)
    first = torch.arange(len(chosen), device=input_ids.device).unsqueeze(1) * column.shape[1]
    of_rejected = torch.where(place < shared, place, place - shared + chosen_end)
    columns = torch.cat([place.expand_as(of_rejected), of_rejected]) + first.repeat(2, 1)
    wanted = labels[:, 1:] != NO_LABEL
    # 4. Number the N scored places. A label within the shared prefix is scored once, with the chosen text. (2B, T - 1)
    common = torch.cat([torch.zeros_like(wanted[: len(chosen)]), place + 1 < shared])
    scored = wanted & ~common
    numbers = (scored.flatten().cumsum(dim=0) - 1).view_as(scored)
    numbers = torch.where(common, numbers[: len(chosen)].repeat(2, 1), numbers)
    return SharedRows(
        tokens,
        positions,
        shared,
        chosen_end,
        end,
        columns[scored],
        labels[:, 1:][scored],
        torch.where(wanted, numbers, int(scored.sum())),
    )


def share_prompt_computation(policy: PeftModel) -> bool:
    """Make a model that TRL's trainer was built on read pairs as shared rows whenever it is called the way TRL does: in steps, for
    the reference, in the evaluation.

    Returns False and changes nothing if its attention does not take our mask, or if a small batch gives different results.
    Batches longer than a sliding window take the plain path; long rows do without the mask, if that gives the same results, too.
    """
    model = policy.get_base_model()
    plain_forward = model.forward
    by_rows_from: int | None = None

    @functools.wraps(plain_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = {name for name, value in kwargs.items() if value is not None}
        if args or not kwargs.get("fused_lm_head") or not given <= TRL_ARGUMENTS:
            return plain_forward(*args, **kwargs)
        ids = kwargs["input_ids"]
        if not attends_to_all(model, ids.shape[1]):
            return plain_forward(*args, **kwargs)
        by_rows = by_rows_from is not None and ids.shape[1] >= by_rows_from
        return _score(model, plain_forward, ids, kwargs["attention_mask"], kwargs["labels"], by_rows=by_rows)

    if not _takes_custom_mask(model):
        return False
    plain = _logps_of_a_small_batch(policy)
    model.forward = forward
    if plain is None or not _same(plain, _logps_of_a_small_batch(policy), model.dtype):
        model.forward = plain_forward
        return False
    if attend_by_rows(model):
        by_rows_from = 0  # the small batch, too
        if _same(plain, _logps_of_a_small_batch(policy), model.dtype):
            by_rows_from = rows_from(policy.device.type)
        else:
            by_rows_from = None
            attend_as_before(model)
    return True


def _takes_custom_mask(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return (
        config._attn_implementation in MASKED_ATTENTION
        and "position_ids" in inspect.signature(type(model.base_model).forward).parameters
        and not getattr(config, "output_router_logits", False)  # expert balancing needs a 2D mask
    )


def _same(plain: Tensor, shared: Tensor | None, dtype: torch.dtype) -> bool:
    """Catches models that accept a mask and positions but use them differently. Exact equality is tested in
    tests/dpo/test_shared_prompt.py.
    """
    most = TOLERANCE_FLOAT32 if dtype == torch.float32 else TOLERANCE_HALF
    return shared is not None and bool((plain - shared).abs().mean() < most)


def _logps_of_a_small_batch(policy: PeftModel) -> Tensor | None:
    """Of two short pairs, as TRL's trainer asks for them; None if the model cannot say."""
    ids = torch.tensor(
        [[2, 5, 3, 7, 4, 6, 9, 8], [3, 3, 6, 0, 0, 0, 0, 0], [2, 5, 3, 7, 9, 9, 0, 0], [3, 3, 7, 5, 2, 8, 0, 0]]
    )
    ids = ids.to(policy.device)
    asked = {"input_ids": ids, "attention_mask": (ids > 0).long(), "fused_lm_head": True}
    labels = ids.masked_fill(ids == 0, NO_LABEL)
    labels[::2, :3] = labels[1::2, :2] = NO_LABEL
    try:
        with torch.no_grad():
            found: Tensor = policy(**asked, labels=labels).log_probs
            return found
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None


def _score(
    model: PreTrainedModel,
    fused: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    *,
    by_rows: bool = False,
) -> FusedCausalLMOutput:
    """The per-token figures of TRL's fused head, (2B, T - 1), computed on shared rows.

    by_rows   the model was told to attend by rows, and is given their parts in place of a mask
    """
    rows = pack_shared_prompt(input_ids, attention_mask, labels)
    seen = (
        {"attention_mask": torch.ones_like(rows.tokens), "shared_rows": rows.parts()}
        if by_rows
        else {"attention_mask": _attention_mask(rows.sees, model)}
    )

    def keep_scored(_: Any, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state.flatten(0, 1).to(rows.scored.device)  # (B * W, H)
        output.last_hidden_state = hidden[rows.scored].unsqueeze(0)  # (1, N, H)
        return output

    backbone = model.base_model.register_forward_hook(keep_scored)
    try:
        found = fused(
            input_ids=rows.tokens,
            position_ids=rows.positions,
            shift_labels=rows.labels.unsqueeze(0),
            fused_lm_head=True,
            **seen,
        )
    finally:
        backbone.remove()
    return FusedCausalLMOutput(
        **{name: _unpacked(getattr(found, name), rows.places) for name in PER_TOKEN},
        label_mask=labels[:, 1:] != NO_LABEL,
    )


def _unpacked(figures: Tensor | None, places: Tensor) -> Tensor | None:
    """Scatter figures from (1, N) to (2B, T - 1), with 0 where there is no label."""
    return None if figures is None else torch.cat([figures[0], figures.new_zeros(1)])[places]


def _attention_mask(sees: Tensor, model: PreTrainedModel) -> Tensor:
    """The mask in the form of the model's attention: additive for eager, else bool."""
    if model.config.get_text_config()._attn_implementation != "eager":
        return sees
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(sees.shape, dtype=model.dtype, device=sees.device).masked_fill(~sees, lowest)
