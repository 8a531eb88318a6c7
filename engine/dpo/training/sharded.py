"""A model that is spread over several processes (FSDP2): its weights and its optimizer's state as whole tensors, and back.

Checkpoints hold whole tensors, so that a training goes on with any number of processes, sharded or not. Every function here is
called by all processes: each has a part of every tensor. Imports torch; import it where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch import nn


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which this process has a part; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # type: ignore[no-any-return,unused-ignore]


def whole_weights(model: nn.Module, name_part: str) -> dict[str, Tensor]:
    """The weights whose names contain `name_part`, by the names of `model.state_dict()`."""
    return {name: whole(tensor.detach()) for name, tensor in model.state_dict().items() if name_part in name}


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` as a single process has it."""
    found = optimizer.state_dict()
    state = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
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
    """Of a moment, spread as its parameter is; a count of steps is no tensor of its shape."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
