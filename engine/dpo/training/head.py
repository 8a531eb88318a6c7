"""How TRL's trainer gets log-probabilities from hidden states when it calls a model with `fused_lm_head`.

    chunked   tiles that fit a processor's cache, with the gradient computed in the same pass (`engine.models.head`)
    trl       TRL's own tiles of 4,096 positions by 32,768 words, a Triton kernel on a GPU
    whole     the model's own logits of all positions at once

`whole` is for models that transform their logits after the head, for which the other two would be wrong.

Shapes: R rows, L columns, N labels, H hidden size, V vocabulary. Imports torch; import it where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from engine.dpo.planning.forecast import HeadMethod, head_method
from engine.models.head import LabelStatistics, head_of, label_statistics, reproduces_logits
from engine.models.placement import on_several_devices

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from engine.core.config import Stage3Config

NO_LABEL = -100
"""TRL's label for tokens that are not predicted."""


def install_head(policy: PeftModel, config: Stage3Config) -> tuple[HeadMethod, str]:
    """Make a model that TRL's trainer was built on use the method of --head.

    Returns the method, and a sentence on why it differs from the requested one, or an empty string.
    """
    model = policy.get_base_model()
    method, why = head_method(config.head, model.device.type), ""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        return "trl", ""  # only TRL's own adds the experts' balancing loss
    if method == "trl" and on_several_devices(model):
        method = "chunked"  # TRL's needs hidden states, head and labels on one device
    if method != "whole" and not reproduces_logits(model, policy):
        method, why = "whole", f"{type(model).__name__} transforms its logits after the head"
        why += ": its head is computed whole, which needs memory for all logits of a pair"
    if method != "trl":
        plain = model.forward
        scored = functools.partial({"chunked": _chunked, "whole": _whole}[method], model, plain)
        model.forward = _with_head(plain, scored)
    return method, why


Scored = Callable[[dict[str, Any], Tensor, bool], tuple[Tensor, LabelStatistics]]
"""(arguments of the forward pass, labels (R, L), whether the labels are already shifted)
-> (whether there is a label (R, L), statistics (N,) of the labels)
"""


def _with_head(plain: Callable[..., Any], scored: Scored) -> Callable[..., Any]:
    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if args or not kwargs.get("fused_lm_head"):
            return plain(*args, **kwargs)
        inputs = {name: value for name, value in kwargs.items() if name not in HEAD_ARGUMENTS} | {"use_cache": False}
        shifted = kwargs.get("shift_labels")
        labels = kwargs["labels"] if shifted is None else shifted
        return _as_trl(*scored(inputs, labels, shifted is not None))

    return forward


HEAD_ARGUMENTS = ("fused_lm_head", "labels", "shift_labels", "num_items_in_batch", "use_cache")


def _chunked(
    model: PreTrainedModel, _: Callable[..., Any], inputs: dict[str, Any], labels: Tensor, shifted: bool
) -> tuple[Tensor, LabelStatistics]:
    hidden = model.base_model(**inputs).last_hidden_state.to(labels.device)  # (R, L, H)
    hidden, labels = _align(hidden, labels, shifted)
    has_label, head = labels != NO_LABEL, head_of(model)
    assert head is not None  # `reproduces_logits` found one; PEFT can only replace it
    return has_label, label_statistics(head, hidden[has_label], labels[has_label])  # (N, H) and (N,)


def _whole(
    _: PreTrainedModel, plain: Callable[..., Any], inputs: dict[str, Any], labels: Tensor, shifted: bool
) -> tuple[Tensor, LabelStatistics]:
    logits, labels = _align(plain(**inputs).logits, labels, shifted)  # (R, L, V)
    has_label = labels != NO_LABEL
    logits = logits[has_label].float()  # (N, V)
    logps = logits.log_softmax(dim=-1)  # (N, V)
    label_logps = logps.gather(1, labels[has_label].unsqueeze(1)).squeeze(1)  # (N,)
    with torch.no_grad():
        entropy = -torch.linalg.vecdot(logps.exp(), logps)  # (N,)
        return has_label, LabelStatistics(label_logps, entropy, logits.mean(dim=-1), label_logps >= logps.amax(dim=-1))


def _align(states: Tensor, labels: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """The state that predicts each label, and the labels."""
    return (states, labels) if shifted else (states[:, :-1], labels[:, 1:])


def _as_trl(has_label: Tensor, figures: LabelStatistics) -> FusedCausalLMOutput:
    """Figures (N,) as TRL reads them: (R, L), with 0 where there is no label."""
    logps, entropy, mean_logits, is_top1 = (
        figure.new_zeros(has_label.shape).masked_scatter(has_label, figure) for figure in figures
    )
    return FusedCausalLMOutput(
        log_probs=logps, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1, label_mask=has_label
    )
