"""How many processes train together, and how many generate or evaluate, each with a model of its own."""

from __future__ import annotations

from engine.core.config import Stage3Config, nearest_divisors
from engine.core.errors import ConfigError, PreconditionError
from engine.machine.device import resolve_device
from engine.models.loading import gpus_for_base


def number_of_processes(config: Stage3Config) -> int:
    """How many processes train: `--num-processes`, else the most GPUs that divide the effective batch, else one per machine.

    Raises PreconditionError if there are fewer GPUs than processes, and ConfigError if --device names a single GPU or the
    effective batch cannot be divided evenly among the machines.
    """
    if config.num_processes == 1:
        return 1
    device = resolve_device(config)
    if config.num_processes is None:
        gpus = _gpus() if device.type == "cuda" and device.index is None else 1
        return _largest_even_split(config, gpus)
    if device.type == "cuda":
        _require_gpus(config, config.num_processes // config.num_machines)
    return config.num_processes


def local_processes(config: Stage3Config, training_processes: int | None = None) -> int:
    """How many processes generate, measure or judge on this machine, each with its own base model: as many as train here,
    or one if the base model needs several GPUs.

    training_processes   on all machines, if known; by default `number_of_processes`, which counts GPUs
    """
    if gpus_for_base(config) > 1:
        return 1
    return (training_processes or number_of_processes(config)) // config.num_machines


def _gpus() -> int:
    import torch

    return max(int(torch.cuda.device_count()), 1)


def _largest_even_split(config: Stage3Config, gpus_per_machine: int) -> int:
    pairs, machines = config.per_device_train_batch_size * config.gradient_accumulation_steps, config.num_machines
    if pairs % machines:
        raise ConfigError(
            f"--num-machines {machines}: {pairs} pairs per optimizer step cannot be divided evenly among {machines} machines.",
            "Every process trains the same number of pairs per step.",
            f"Use --num-machines {nearest_divisors(pairs, machines)[0]}, or change --gradient-accumulation-steps.",
        )
    return machines * nearest_divisors(pairs // machines, gpus_per_machine)[0]


def _require_gpus(config: Stage3Config, number: int) -> None:
    import torch

    if ":" in config.device:
        raise ConfigError(
            f"--num-processes {number} and --device {config.device} cannot be combined.",
            f"Each process needs its own GPU, but {config.device} is a single GPU.",
            "Use --device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES.",
        )
    gpus = torch.cuda.device_count()
    if gpus < number:
        raise PreconditionError(
            f"--num-processes {config.num_processes}: this machine has {gpus} GPUs, but would run {number} of the processes.",
            "Each process needs its own GPU.",
            f"Use --num-processes {gpus * config.num_machines} or fewer, or --device cpu.",
        )
