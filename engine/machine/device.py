"""The device of `--device`, and its number formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError

if TYPE_CHECKING:
    import torch


def resolve_device(config: Stage3Config) -> torch.device:
    """The device of `--device`. Raises PreconditionError if it does not exist."""
    import torch

    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PreconditionError(
            f"--device {name}: torch {torch.__version__} finds no CUDA device.",
            "This machine has no NVIDIA GPU, or torch's CUDA build is newer than the driver.",
            "Run `stage3-tui doctor` for details, or use --device cpu.",
        )
    return device


def gpu_has_bfloat16(device: torch.device) -> bool:
    """Whether the GPU supports bfloat16 natively. Older ones (T4, V100) only emulate it, slowly."""
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
