"""Which way TRL's trainer gets log-probabilities from hidden states, whenever it asks a model for them with `fused_lm_head`.

    chunked   tiles that fit a processor's cache, with the gradient in the same pass (`engine.models.head`)
    trl       TRL's own tiles of 4,096 positions by 32,768 words, a Triton kernel on a GPU
    whole     the model's own logits of all positions at once

The last is for models that do more to their logits than their head says: the other two would be wrong there. Imports torch; import
it where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from engine.dpo.planning.forecast import HeadWay, head_way
from engine.models.head import LabelStatistics, head_of, label_statistics, reproduces_logits
from engine.models.placement import on_several_devices

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from engine.core.config import Stage3Config

NO_LABEL = -100
"""TRL's label for tokens that are not predicted."""


def install_head(policy: PeftModel, config: Stage3Config) -> tuple[HeadWay, str]:
    """Make a model that TRL's trainer was built on answer TRL's calls in the way of --head. Returns that way, and a sentence if it
    is another than asked for.
    """
    model = policy.get_base_model()
    way, why = head_way(config.head, model.device.type), ""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        return "trl", ""  # the balancing loss of experts comes with TRL's own
    if way == "trl" and on_several_devices(model):
        way = "chunked"  # TRL's wants hidden states, head and labels on one device
    if way != "whole" and not reproduces_logits(model, policy):
        way, why = "whole", f"{type(model).__name__} changes its logits in a way of its own"
        why += ": its head is computed whole, which needs memory for all logits of a pair"
    if way != "trl":
        plain = model.forward
        model.forward = _answering(plain, functools.partial({"chunked": _chunked, "whole": _whole}[way], model, plain))
    return way, why


Scored = Callable[[dict[str, Any], Tensor, bool], tuple[Tensor, LabelStatistics]]
"""(arguments of the forward pass, labels (R, L), whether they are shifted already) -> (where there is a label (R, L), the
figures of these labels).
"""


def _answering(plain: Callable[..., Any], scored: Scored) -> Callable[..., Any]:
    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if args or not kwargs.get("fused_lm_head"):
            return plain(*args, **kwargs)
        asked = {name: value for name, value in kwargs.items() if name not in NOT_OF_THE_BACKBONE}
        shifted = kwargs.get("shift_labels")
        found = scored(
            asked | {"use_cache": False}, kwargs["labels"] if shifted is None else shifted, shifted is not None
        )
        return _as_trl(*found)

    return forward


NOT_OF_THE_BACKBONE = ("fused_lm_head", "labels", "shift_labels", "num_items_in_batch", "use_cache")


def _chunked(
    model: PreTrainedModel, _: Callable[..., Any], asked: dict[str, Any], labels: Tensor, shifted: bool
) -> tuple[Tensor, LabelStatistics]:
    hidden, labels = _shift(model.base_model(**asked).last_hidden_state.to(labels.device), labels, shifted)
    wanted, head = labels != NO_LABEL, head_of(model)
    assert head is not None  # `reproduces_logits` found one, and PEFT only changes which
    return wanted, label_statistics(head, hidden[wanted], labels[wanted])


def _whole(
    _: PreTrainedModel, plain: Callable[..., Any], asked: dict[str, Any], labels: Tensor, shifted: bool
) -> tuple[Tensor, LabelStatistics]:
    logits, labels = _shift(plain(**asked).logits, labels, shifted)
    wanted = labels != NO_LABEL
    logits = logits[wanted].float()  # (N, V)
    logps = logits.log_softmax(dim=-1)
    own = logps.gather(1, labels[wanted].unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        entropy = -torch.linalg.vecdot(logps.exp(), logps)
        return wanted, LabelStatistics(own, entropy, logits.mean(dim=-1), own >= logps.amax(dim=-1))


def _shift(states: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """What stands before each label, and the labels."""
    return (states, labels) if shifted else (states[:, :-1], labels[:, 1:])


def _as_trl(wanted: Tensor, figures: LabelStatistics) -> FusedCausalLMOutput:
    """Figures as TRL reads them: (R, L), with 0 where there is no label."""
    logps, entropy, mean_logits, is_top1 = (
        figure.new_zeros(wanted.shape).masked_scatter(wanted, figure) for figure in figures
    )
    return FusedCausalLMOutput(
        log_probs=logps, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1, label_mask=wanted
    )
