"""The forecast of the run, as checks and as an event."""

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


def forecast_checks(forecast: Forecast, machine: Machine) -> Generator[Event, None, None]:
    yield Check("forecast: pairs", "ok", duration(forecast.seconds_pairs))
    yield Check("forecast: training", "ok", duration(forecast.seconds_training))
    yield Check("forecast: evaluation", "ok", duration(forecast.seconds_evaluation))
    yield Check("forecast: disk", "ok", f"{forecast.disk_bytes / 1e6:.0f} MB")
    room = machine.room / GIB
    for name, size in _peaks(forecast, machine).items():
        detail = f"{size / GIB:.1f} of {room:.1f} GiB at the peak, as measured in the rehearsal"
        yield Check(f"forecast: memory, {name}", "ok", detail)


def _peaks(forecast: Forecast, machine: Machine) -> dict[str, float]:
    """Peak bytes of each long stage. On a GPU, torch's figure does not include CUDA's own share."""
    context = machine.context if machine.device_type == "cuda" else 0
    return {"pairs": forecast.peak_bytes_pairs + context, "training": forecast.peak_bytes + context}


def forecast_event(forecast: Forecast, machine: Machine, device_number: int) -> Event:
    on_gpu = machine.device_type == "cuda"
    return events.Forecast(
        seconds={
            "pairs": forecast.seconds_pairs,
            "training": forecast.seconds_training + forecast.seconds_evaluation,
        },
        peak_bytes=_peaks(forecast, machine),
        on_gpu=on_gpu,
        gpu=gpu_of_cuda(device_number) if on_gpu else None,
        disk_bytes=forecast.disk_bytes,
    )


def require_disk(folder: Path, forecast: Forecast) -> None:
    """Raises PreconditionError if the disk of the run folder has less space than the run needs."""
    free = shutil.disk_usage(folder).free
    if forecast.disk_bytes > free:
        raise PreconditionError(
            f"The run needs {forecast.disk_bytes / GIB:.1f} GiB of disk space, but only {free / GIB:.1f} GiB are free.",
            "Pairs, checkpoints and the archive would not fit.",
            "Free some space, choose another --output-dir, or lower --num-examples.",
        )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
