"""How many GPUs of this machine hold the base model in one process: one, or several with some of the layers each.

Training shards a model across processes (FSDP2), which run each pass together. Generation, measurement and judging run in one
process, so there the layers are placed on the GPUs one after another (accelerate's `device_map`) if one GPU cannot hold them all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.core.sizes import format_size
from engine.machine.device import resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_WEIGHT_SHARE = 0.7
"""Share of a GPU's memory that the weights may take; generation needs the rest for keys and values."""


def gpus_needed(config: Stage3Config, dtype: str, hub_arguments: dict[str, Any]) -> int:
    """How many GPUs hold the base model in one process, if it may use several: all of them if one is too small, else one.

    dtype            a torch dtype's name
    hub_arguments    for transformers' `from_pretrained`
    """
    memory = _gpu_memory(config)
    if len(memory) < 2:
        return 1
    needed = _weight_bytes(config.base_model_id, dtype, tuple(sorted(hub_arguments.items())))
    return 1 if needed <= MAX_WEIGHT_SHARE * min(memory) else len(memory)


def _gpu_memory(config: Stage3Config) -> list[int]:
    """Memory of each GPU in bytes; empty if --device selects one GPU, or none."""
    import torch

    device = resolve_device(config)
    if device.type != "cuda" or device.index is not None:
        return []
    return [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]


@lru_cache(maxsize=4)
def _weight_bytes(name: str, dtype: str, hub_arguments: tuple[tuple[str, Any], ...]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name, **{**dict(hub_arguments), "local_files_only": True})
    except OSError:  # not in the cache yet
        config = AutoConfig.from_pretrained(name, **dict(hub_arguments))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def on_several_devices(model: PreTrainedModel) -> bool:
    """Whether the model's layers are on several devices, so that its last hidden states are on another device than its inputs."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def require_on_gpus(model: PreTrainedModel, gpus: int) -> None:
    """Raises PreconditionError if some layers fit on none of the GPUs: they would be copied there for every pass."""
    elsewhere = [name for name, where in model.hf_device_map.items() if where in ("cpu", "disk")]
    if elsewhere:
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        raise PreconditionError(
            f"The {gpus} GPUs of this machine are too small for the base model's {format_size(size)}.",
            f"{len(elsewhere)} of its modules do not fit ({elsewhere[0]}, …).",
            "Free GPU memory (`nvidia-smi` lists the processes that use it), or use more GPUs or a smaller --base-model-id.",
        )
