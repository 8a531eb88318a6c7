"""What switching an adapter on and off does to the logits: the proof that PEFT loaded what the file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.adapters.folder import EXPORT_AGAIN

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "How should I apologise to a friend?"
SAME = 0.005
"""Of the largest logit: what another order of sums may move. On the CPU the base moves by nothing."""


def logits_of(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(1, T, vocabulary) float32: over one prompt in the chat template."""
    import torch

    from engine.models.chat_template import conversation_ids

    ids = conversation_ids(tokenizer, [{"role": "user", "content": QUESTION}], reply_wanted=True)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits.float()
    model.train(was_training)
    return logits


def effect_on_logits(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, base_logits: Tensor | None = None) -> float:
    """The largest change of a logit when the adapter is switched on.

    base_logits   of the base before the adapter was loaded: switched off, the policy must say the same

    Raises PreconditionError where the effect is 0 or not finite, or where the base became another.
    """
    on = logits_of(policy, tokenizer)
    with policy.disable_adapter():
        off = logits_of(policy, tokenizer)
    effect: float = (on - off).abs().max().item()
    if not effect > 0 or effect == float("inf"):
        raise PreconditionError(
            f"Switching the adapter on changes the logits by {effect}.",
            "More than 0 and finite is right; this adapter does nothing, or it breaks the model.",
            EXPORT_AGAIN,
        )
    if base_logits is not None:
        moved: float = (off - base_logits).abs().max().item()
        if not moved <= SAME * base_logits.abs().max().item():
            raise PreconditionError(
                f"With the adapter switched off, a logit of the base is another by {moved:.4g}.",
                "Loading the adapter changed the base's own weights: the reference would not be Stage 2.",
                EXPORT_AGAIN,
            )
    return effect


def refuse_rounded(policy: PeftModel, tensors_sha256: str) -> str:
    """What a person should know of the format in which the loaded adapter is held; empty where there is nothing.

    PEFT holds LoRA in float32 over any base, but whole modules (modules_to_save) in the base's own format.

    tensors_sha256   of the file's numbers

    Raises PreconditionError where what is loaded is not what the file holds, or could not be trained.
    """
    import torch

    from engine.models.loading import POLICY_ADAPTER, dtype_name
    from engine.models.tensors import adapter_tensors, hash_tensors

    tensors = adapter_tensors(policy, POLICY_ADAPTER)
    half = {dtype_name(tensor.dtype) for tensor in tensors.values() if tensor.dtype != torch.float32}
    held = " and ".join(sorted(half))
    if hash_tensors(tensors) != tensors_sha256:
        raise PreconditionError(
            "The adapter that PEFT loaded is not the one in the file.",
            f"It holds modules_to_save in the base's format, {held}, and that rounds them: the reference would not be Stage 2."
            if half
            else "Its numbers are others.",
            "Use --dtype float32." if half else EXPORT_AGAIN,
        )
    if "float16" in half:
        raise PreconditionError(
            "The adapter's modules_to_save cannot be trained in float16.",
            "PEFT holds them in the base's format, and the scaling of float16's gradients asks for float32.",
            "Use --dtype float32, or bfloat16 where the GPU has it.",
        )
    return (
        f"modules_to_save are trained in {held}, in which small steps are lost; --dtype float32 keeps them"
        if half
        else ""
    )
