"""Hash adapter tensors: equal numbers give equal hashes, in memory and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the name, shape and float32 bytes of each tensor, in the order of names.

    float32, because that is how PEFT keeps an adapter in memory, whatever the format of its file.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").float().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all ranks if it is sharded (FSDP2); then every rank must call this. Others are returned
    unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def adapter_tensors(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """The adapter's tensors by the names used in its file (`base_model.model.….lora_A.weight`)."""
    return {name: full_tensor(tensor) for name, tensor in local_adapter_tensors(model, adapter_name).items()}


def local_adapter_tensors(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """As `adapter_tensors`, but of a sharded model only this rank's shards. The tensors share the model's memory."""
    from peft import get_peft_model_state_dict

    # With save_embedding_layers="auto" PEFT would request the base model's configuration from the Hub.
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return found


def file_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU. Raises safetensors.SafetensorError for a damaged file."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors
