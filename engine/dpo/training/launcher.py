"""Start training workers with accelerate's launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.core import layout
from engine.core.config import Stage3Config
from engine.process.environment import model_process_environment
from engine.process.interactive_child import InteractiveChild, interactive_child
from engine.run.folder import Run

LAUNCHER = "accelerate.commands.launch"
REQUEST_JSON = f"{layout.PROCESSES_DIR}/request.json"


@contextmanager
def launch_workers(config: Stage3Config, run: Run, processes: int) -> Iterator[InteractiveChild]:
    """Run the workers as one child process; none of them is left at the end."""
    launcher = interactive_child(
        launch_command(config, run, processes),
        cwd=Path.cwd(),
        extra=model_process_environment(),
        log_file=run / launcher_log(config.machine_rank),
    )
    with launcher as started:
        yield started


def launcher_log(machine: int) -> str:
    """The log of a machine's launcher, in the run folder."""
    return f"{layout.PROCESSES_DIR}/launcher{f'-{machine}' if machine else ''}.log"


def launch_command(config: Stage3Config, run: Run, processes: int) -> list[str]:
    """The command passes every option that the user's own accelerate configuration could set differently.

    processes   on all machines
    """
    here = processes // config.num_machines
    options = {
        "num_processes": processes,
        "num_machines": config.num_machines,
        "machine_rank": config.machine_rank,
        "main_process_port": config.main_process_port if config.num_machines > 1 else 0,  # 0: any free port
        "gpu_ids": "all",
        "mixed_precision": "no",  # TRL's trainer sets the precision
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS")
        or max(len(os.sched_getaffinity(0)) // here, 1),
    }
    if config.num_machines > 1:
        options["main_process_ip"] = str(config.main_process_ip)
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [
        # Without GPUs this means gloo on the CPU; with --cpu, the launcher would start a single process.
        *(sys.executable, "-m", LAUNCHER, "--multi_gpu", *arguments),
        *("--module", "engine.dpo.training.worker", str(run / REQUEST_JSON)),
    ]
