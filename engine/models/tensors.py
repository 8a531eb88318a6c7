"""Adapter tensors as evidence: one hash for the same numbers, wherever they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and float32 bytes of each tensor, in the order of the names.

    float32, because PEFT holds an adapter so in memory whatever format its file has.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").float().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def adapter_tensors(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The adapter's tensors under the names that its file has (`base_model.model.….lora_A.weight`)."""
    from peft import get_peft_model_state_dict

    # save_embedding_layers: left to itself, PEFT asks the Hub for the base model's configuration.
    return dict(get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False))


def file_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU. Raises safetensors.SafetensorError for a damaged file."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors
