"""Two pretended devices: their tensors report them but compute on the CPU. An operation between the two raises, as it
does between two GPUs. Works only without gradients.

This changes torch for the whole process, so use it in a child process of a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "privateuseone"
"""The device type that torch reserves for third parties."""
MOVES = ("aten::_to_copy", "aten::copy_")


class _Module(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return 2

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Placed(torch.Tensor):
    """A tensor that claims to be on another device."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor, device: torch.device) -> Placed:
        made: Placed = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=device,
        )
        made.on_cpu = on_cpu
        return made

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket._qualified_op_name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    where = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
    if len(where) > 1 and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {where} in {name}")
    wanted = kwargs.get("device")
    device = wanted or (args[0].device if name in MOVES else next(iter(where), torch.device("cpu")))
    result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if device.type != KIND:
        return result
    known = {
        id(tensor.on_cpu): tensor for tensor in tensors if isinstance(tensor, Placed)
    }  # results of in-place operations

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, Placed):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Placed(leaf, device)

    return tree_map(placed, result)


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) and leaf.type == KIND:
        return torch.device("cpu")
    return leaf.on_cpu if isinstance(leaf, Placed) else leaf


@lru_cache
def _registered() -> None:
    backend_registration._setup_privateuseone_for_python_backend(backend_module=_Module())


@contextmanager
def two_devices() -> Iterator[list[torch.device]]:
    """Both devices, which can be used only inside this block."""
    _registered()
    plain, inference = torch.tensor, torch.inference_mode

    def tensor(*given: Any, device: Any = None, **more: Any) -> Tensor:
        """torch's own writes to the device's memory without passing through the dispatch mode."""
        made = plain(*given, **more)
        return made if device is None else made.to(device)

    torch.tensor = tensor
    torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment,misc]
    try:
        with torch.no_grad(), _Devices():
            yield [torch.device(KIND, number) for number in range(2)]
    finally:
        torch.tensor, torch.inference_mode = plain, inference  # type: ignore[misc]
