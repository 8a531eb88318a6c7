"""The optimizers of --optim, by transformers' names: the state that they keep, and where they run.

All are AdamW. Those of bitsandbytes keep its two moments in 8 bits (Dettmers et al. 2022), or in pages that CUDA moves to host
memory when the GPU is full.
"""

from __future__ import annotations

from importlib.util import find_spec

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError
from engine.machine.device import resolve_device

TORCH_ADAMW: str = Stage3Config.model_fields["optim"].default
QUANTIZATION_BLOCK = 256
"""The number of 8-bit values that share a 4-byte scale."""


def uses_bitsandbytes(config: Stage3Config) -> bool:
    return config.optim != TORCH_ADAMW


def moment_bytes(optim: str) -> float:
    """The bytes of each of the two moments, per parameter of the adapter.

    Paged state counts as if it were on the GPU, because tensors of less than 100,000 numbers, common in adapters, are not paged.
    """
    return 1 + 4 / QUANTIZATION_BLOCK if "8bit" in optim else 4


def require_optimizer(config: Stage3Config) -> None:
    """Raises PreconditionError if the optimizer is not installed, or does not run on this device."""
    if not uses_bitsandbytes(config):
        return
    device = resolve_device(config)
    if "paged" in config.optim and device.type != "cuda":
        raise PreconditionError(
            f"--optim {config.optim}: the device is {device}.",
            "A paged optimizer moves its state between the memory of a CUDA GPU and host memory.",
            f"Use --optim {'adamw_8bit' if '8bit' in config.optim else TORCH_ADAMW}, or --device cuda if there is a GPU.",
        )
    if find_spec("bitsandbytes") is None:
        raise PreconditionError(
            f"--optim {config.optim}: bitsandbytes is not installed.",
            "It implements this optimizer.",
            "Install the extra: `pip install 'stage3-tui[bitsandbytes]'`, or omit --optim.",
        )
