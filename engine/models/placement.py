"""Which GPUs of this machine hold the base model in one process: one, or several that have some of its layers each.

Training spreads a model over processes (FSDP2), which read in step. What generates, measures or judges reads alone, so that there
the layers lie one after the other on the GPUs (accelerate's `device_map`), as soon as one GPU has no room for all of them.
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

ROOM_FOR_WEIGHTS = 0.7
"""Share of a GPU's memory that the weights may take: a policy that generates needs the rest for keys and values."""


def gpus_of_base(config: Stage3Config, dtype: str, hub_arguments: dict[str, Any]) -> int:
    """How many GPUs hold the base model in one process, if it may take several: all of them where one has no room.

    dtype            a torch dtype's name
    hub_arguments    for transformers' `from_pretrained`
    """
    memory = _gpus(config)
    if len(memory) < 2:
        return 1
    needed = _weight_bytes(config.base_model_id, dtype, tuple(sorted(hub_arguments.items())))
    return 1 if needed <= ROOM_FOR_WEIGHTS * min(memory) else len(memory)


def _gpus(config: Stage3Config) -> list[int]:
    """Bytes of memory of each; none if --device names one of them, or none."""
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
    except OSError:  # not there yet
        config = AutoConfig.from_pretrained(name, **dict(hub_arguments))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def on_several_devices(model: PreTrainedModel) -> bool:
    """Whether its layers are. Its hidden states then end on another device than its inputs came to."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def require_on_gpus(model: PreTrainedModel, gpus: int) -> None:
    """Raises PreconditionError if there was no room for some layers on any of them: from elsewhere they would be read each time."""
    elsewhere = [name for name, where in model.hf_device_map.items() if where in ("cpu", "disk")]
    if elsewhere:
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        raise PreconditionError(
            f"The {gpus} GPUs of this machine have no room for the base model's {format_size(size)}.",
            f"{len(elsewhere)} parts of it are left over ({elsewhere[0]}, …).",
            "Free their memory (`nvidia-smi` lists who uses it), or use more GPUs or a smaller --base-model-id.",
        )
