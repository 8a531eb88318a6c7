"""Spread a model over several processes (FSDP2); its weights and its optimizer's state as whole tensors, and back.

    Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"

Checkpoints hold whole tensors, so that a training goes on with any number of processes, sharded or not. Every function here is
called by all processes: each has a part of every tensor. Imports torch; import it where it is used.
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


def spread(model: nn.Module, layers: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Move this process's part of every weight to `device`, one layer after the other, and let go of the rest.

    layers   each is put together for its own pass only; the embeddings and the head stay whole from the forward to the end of the
             backward pass
    """
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers names as layers; of a model for which it names none, those of its longest list of modules.

    Raises PreconditionError if there are none: then each pass would put the whole model together.
    """
    named = set(model._no_split_modules or ())
    modules = list(model.modules())[::-1]  # what lies in another one first, as `fully_shard` wants them
    layers = [module for module in modules if type(module).__name__ in named]
    lists = [list(module) for module in modules if isinstance(module, nn.ModuleList)]
    layers = layers or max(lists, key=len, default=[])
    if not layers:
        raise PreconditionError(
            f"--sharding fsdp: {type(model).__name__} has no layers that could be told from the rest.",
            "Each process would put the whole model together in each pass.",
            "Use --sharding ddp.",
        )
    return layers


def whole_weights(model: nn.Module, name_part: str) -> dict[str, Tensor]:
    """The weights whose names contain `name_part`, by the names of `model.state_dict()`."""
    return {name: full_tensor(tensor.detach()) for name, tensor in model.state_dict().items() if name_part in name}


def load_whole_weights(parts: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """The reverse, in place: each process takes its part. Raises KeyError for a weight that `saved` lacks."""
    for name, part in parts.items():
        part.copy_(_part(saved[name], part))


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` as a single process has it."""
    found = optimizer.state_dict()
    state = {
        number: {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for number, values in found["state"].items()
    }
    return {**found, "state": state}


def load_whole_optimizer_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """The reverse: each process takes its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {name: _part(value, parameters[number]) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _part(value: Any, parameter: Tensor) -> Any:
    """Of a tensor, spread as its parameter is; a count of steps is no tensor of its shape."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def let_go_of_whole_weights(model: nn.Module) -> None:
    """A forward pass without a backward pass leaves the embeddings and the head whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def bytes_held(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """Of these, in this process, and whole."""
    here = total = 0
    for parameter in parameters:
        total += parameter.numel() * parameter.element_size()
        part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        here += part.numel() * part.element_size()
    return here, total
