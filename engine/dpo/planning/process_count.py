"""How many processes train together, and how many work with models of their own."""

from __future__ import annotations

from engine.core.config import Stage3Config, nearest_divisors
from engine.core.errors import ConfigError, PreconditionError
from engine.machine.device import resolve_device
from engine.models.loading import gpus_for_base


def number_of_processes(config: Stage3Config) -> int:
    """`--num-processes`, else as many of the GPUs as divide the effective batch, else one on each machine.

    Raises PreconditionError if there are fewer GPUs than processes, ConfigError if --device names one GPU or the machines
    do not divide the effective batch.
    """
    if config.num_processes == 1:
        return 1
    device = resolve_device(config)
    if config.num_processes is None:
        gpus = _gpus() if device.type == "cuda" and device.index is None else 1
        return _most_that_divide(config, gpus)
    if device.type == "cuda":
        _require_gpus(config, config.num_processes // config.num_machines)
    return config.num_processes


def local_processes(config: Stage3Config, that_train: int | None = None) -> int:
    """Those of this machine that generate, measure or judge, each with a base of its own: as many as train here, but one if a base
    takes several GPUs.

    that_train   on all machines, where it is known; by default `number_of_processes`, which looks for GPUs
    """
    if gpus_for_base(config) > 1:
        return 1
    return (that_train or number_of_processes(config)) // config.num_machines


def _gpus() -> int:
    import torch

    return max(int(torch.cuda.device_count()), 1)


def _most_that_divide(config: Stage3Config, on_each: int) -> int:
    pairs, machines = config.per_device_train_batch_size * config.gradient_accumulation_steps, config.num_machines
    if pairs % machines:
        raise ConfigError(
            f"--num-machines {machines}: {pairs} pairs of one optimizer step cannot be dealt out to so many.",
            "Each process has as many pairs of a step as every other one.",
            f"Use {nearest_divisors(pairs, machines)[0]} machines, or another --gradient-accumulation-steps.",
        )
    return machines * nearest_divisors(pairs // machines, on_each)[0]


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
            f"--num-processes {config.num_processes}: this machine has {there} GPUs for {number} of them.",
            "Each process has a GPU of its own.",
            f"Use --num-processes {there * config.num_machines} or fewer, or --device cpu.",
        )
