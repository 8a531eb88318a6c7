"""The forecast of the whole run, as lines of the stage's table and as an event."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

from engine.core import events
from engine.core.errors import PreconditionError
from engine.core.events import Check, Event
from engine.dpo.planning.forecast import Forecast, Machine
from engine.machine.gpus import gpu_of_cuda

GIB = 1 << 30


def forecast_lines(whole: Forecast, machine: Machine) -> Generator[Event, None, None]:
    yield Check("forecast: pairs", "ok", clock(whole.seconds_pairs))
    yield Check("forecast: training", "ok", clock(whole.seconds_training))
    yield Check("forecast: evaluation", "ok", clock(whole.seconds_evaluation))
    yield Check("forecast: disk", "ok", f"{whole.disk_bytes / 1e6:.0f} MB")
    room = machine.room / GIB
    for name, size in _peaks(whole, machine).items():
        told = f"{size / GIB:.1f} of {room:.1f} GiB at the peak, from the trial"
        yield Check(f"forecast: memory, {name}", "ok", told)


def _peaks(whole: Forecast, machine: Machine) -> dict[str, float]:
    """Peak bytes of each long stage. On a GPU, torch's figure does not include CUDA's own share."""
    beside = machine.context if machine.device_type == "cuda" else 0
    return {"pairs": whole.peak_bytes_pairs + beside, "training": whole.peak_bytes + beside}


def forecast_event(whole: Forecast, machine: Machine, device_number: int) -> Event:
    on_gpu = machine.device_type == "cuda"
    return events.Forecast(
        seconds={"pairs": whole.seconds_pairs, "training": whole.seconds_training + whole.seconds_evaluation},
        peak_bytes=_peaks(whole, machine),
        on_gpu=on_gpu,
        gpu=gpu_of_cuda(device_number) if on_gpu else None,
        disk_bytes=whole.disk_bytes,
    )


def require_disk(folder: Path, whole: Forecast) -> None:
    """Raises PreconditionError if the disk of the run folder has less room than the run will take."""
    free = shutil.disk_usage(folder).free
    if whole.disk_bytes > free:
        raise PreconditionError(
            f"The run needs {whole.disk_bytes / GIB:.1f} GiB of disk space, but only {free / GIB:.1f} GiB are free.",
            "Pairs, checkpoints and the archive would not fit.",
            "Free some space, choose another --output-dir, or lower --num-examples.",
        )


def clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
