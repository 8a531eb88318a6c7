"""The adapter's effect on the logits, as proof that PEFT loaded the file's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.errors import PreconditionError
from engine.models.adapters.folder import EXPORT_AGAIN

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "How should I apologise to a friend?"
MAX_RELATIVE_CHANGE = 0.005
"""Allowed change relative to the largest logit, from another order of summation. On the CPU there is none."""


def logits_of(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The logits over one prompt in the chat template, (1, T, V) float32."""
    import torch

    from engine.models.chat_template import conversation_ids

    ids = conversation_ids(tokenizer, [{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits.float()
    model.train(was_training)
    return logits


def effect_on_logits(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, base_logits: Tensor | None = None) -> float:
    """The largest change of any logit when the adapter is switched on.

    base_logits   the base model's logits before the adapter was loaded; with the adapter off, the policy must give the same

    Raises PreconditionError if the effect is 0 or not finite, or if the base model changed.
    """
    on = logits_of(policy, tokenizer)
    with policy.disable_adapter():
        off = logits_of(policy, tokenizer)
    effect: float = (on - off).abs().max().item()
    if not effect > 0 or effect == float("inf"):
        raise PreconditionError(
            f"Switching the adapter on changes the logits by {effect}.",
            "It must be finite and above 0: this adapter has no effect, or breaks the model.",
            EXPORT_AGAIN,
        )
    if base_logits is not None:
        base_change: float = (off - base_logits).abs().max().item()
        if not base_change <= MAX_RELATIVE_CHANGE * base_logits.abs().max().item():
            raise PreconditionError(
                f"With the adapter switched off, the base model's logits differ by up to {base_change:.4g}.",
                "Loading the adapter changed the base model's weights, so the reference would not be Stage 2.",
                EXPORT_AGAIN,
            )
    return effect


def refuse_rounded(policy: PeftModel, tensors_sha256: str) -> str:
    """A note about the number format of the loaded adapter; usually empty.

    PEFT keeps LoRA in float32, but full modules (modules_to_save) in the base model's format.

    tensors_sha256   hash of the file's tensors (`engine.models.tensors`)

    Raises PreconditionError if the loaded tensors differ from the file, or cannot be trained.
    """
    import torch

    from engine.models.loading import POLICY_ADAPTER, dtype_name
    from engine.models.tensors import adapter_tensors, hash_tensors

    tensors = adapter_tensors(policy, POLICY_ADAPTER)
    half_formats = {dtype_name(tensor.dtype) for tensor in tensors.values() if tensor.dtype != torch.float32}
    formats = " and ".join(sorted(half_formats))
    if hash_tensors(tensors) != tensors_sha256:
        raise PreconditionError(
            "The adapter that PEFT loaded differs from the file.",
            f"PEFT keeps modules_to_save in {formats}, like the base model, and rounds them: the reference would not be Stage 2."
            if half_formats
            else "Their values differ.",
            "Use --dtype float32." if half_formats else EXPORT_AGAIN,
        )
    if "float16" in half_formats:
        raise PreconditionError(
            "The adapter's modules_to_save cannot be trained in float16.",
            "PEFT keeps them in the base model's format, but scaling float16 gradients requires float32.",
            "Use --dtype float32, or bfloat16 if the GPU supports it.",
        )
    return (
        f"modules_to_save are trained in {formats}, which loses small updates; --dtype float32 keeps them"
        if half_formats
        else ""
    )
