"""How many processes train together."""

from __future__ import annotations

from engine.core.config import Stage3Config, nearest_divisors
from engine.core.errors import ConfigError, PreconditionError
from engine.machine.device import resolve_device


def number_of_processes(config: Stage3Config) -> int:
    """`--num-processes`, else as many of the GPUs as divide the effective batch, else 1.

    Raises PreconditionError if there are fewer GPUs than processes, ConfigError if --device names one GPU.
    """
    if config.num_processes == 1:
        return 1
    device = resolve_device(config)
    if config.num_processes is None:
        return 1 if device.type != "cuda" or device.index is not None else _gpus_that_divide(config)
    if device.type == "cuda":
        _require_gpus(config, config.num_processes)
    return config.num_processes


def _gpus_that_divide(config: Stage3Config) -> int:
    import torch

    pairs = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return nearest_divisors(pairs, max(torch.cuda.device_count(), 1))[0]


def _require_gpus(config: Stage3Config, number: int) -> None:
    import torch

    if ":" in config.device:
        raise ConfigError(
            f"--num-processes {number} and --device {config.device} do not go together.",
            f"Each process has a GPU of its own, but {config.device} is one.",
            "Use --device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES.",
        )
    there = torch.cuda.device_count()
    if there < number:
        raise PreconditionError(
            f"--num-processes {number}: this machine has {there} GPUs.",
            "Each process has a GPU of its own.",
            f"Use --num-processes {there} or fewer, or --device cpu.",
        )
