"""Shard a model over several processes (FSDP2), and convert its weights and optimizer state to full tensors and back.

    Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"

Checkpoints contain full tensors, so that training can continue with any number of processes, sharded or not. All processes
must call these functions, because each has a shard of every tensor. Imports torch; import it where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.core.errors import PreconditionError
from engine.models.tensors import full_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard_model(model: nn.Module, layers: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Move this process's shard of every weight to `device`, layer by layer, and free the rest.

    layers   are gathered one at a time, each for its own pass; the embeddings and the head stay gathered until the end of
             the backward pass
    """
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers names as layers, or else the model's longest list of modules.

    Raises PreconditionError if there is none, because each pass would then gather the whole model.
    """
    named = set(model._no_split_modules or ())
    modules = list(model.modules())[::-1]  # children first, as `fully_shard` requires
    layers = [module for module in modules if type(module).__name__ in named]
    lists = [list(module) for module in modules if isinstance(module, nn.ModuleList)]
    layers = layers or max(lists, key=len, default=[])
    if not layers:
        raise PreconditionError(
            f"--sharding fsdp: {type(model).__name__} has no list of layers to shard one by one.",
            "Each process would have to gather the whole model in each pass.",
            "Use --sharding ddp.",
        )
    return layers


def full_weights(model: nn.Module, name_part: str) -> dict[str, Tensor]:
    """Full tensors of the weights whose names contain `name_part`, named as in `model.state_dict()`."""
    return {name: full_tensor(tensor.detach()) for name, tensor in model.state_dict().items() if name_part in name}


def load_full_weights(shards: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy this process's shards of the full tensors in `saved`. Raises KeyError for a weight that `saved` lacks."""
    for name, shard in shards.items():
        shard.copy_(_shard_like(saved[name], shard))


def full_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` with full tensors, as in a single process."""
    state_dict = optimizer.state_dict()
    state = {
        number: {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for number, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def load_full_optimizer_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Load a full state dict: each process takes its shard."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {name: _shard_like(value, parameters[number]) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _shard_like(value: Any, parameter: Tensor) -> Any:
    """Shard a full tensor like its parameter; return anything else, such as the optimizer's step count, as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def reshard(model: nn.Module) -> None:
    """Free gathered weights: a forward pass without a backward pass leaves the embeddings and the head gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def bytes_held(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """Bytes of the parameters in this process, and in total."""
    local = total = 0
    for parameter in parameters:
        total += parameter.numel() * parameter.element_size()
        shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local += shard.numel() * shard.element_size()
    return local, total
