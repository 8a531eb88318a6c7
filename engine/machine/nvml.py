"""NVML, asked in a process of its own: the driver's library can hang, abort, and hand out texts where numbers belong.

The child's whole program is `serve`: it answers every line on its standard input with one line of JSON. `engine.machine.gpus`
is the other end. Imports nothing but the standard library and pynvml, so that it starts at once.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from typing import Any

WITH_HOLDERS = "holders"
"""The question for the processes that hold memory as well."""
LONGEST_SECONDS = 60
"""The system ends a child that hangs for so long: its parent may be gone."""


def serve() -> None:
    """Answer until the standard input ends. Without NVML there is one answer."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # whatever the driver prints is no answer
    nvml: Any = None
    for question in sys.stdin:
        signal.alarm(LONGEST_SECONDS)
        try:
            nvml = nvml or _initialised()
            answer = _read(nvml, with_holders=question.strip() == WITH_HOLDERS)
        except Exception as error:  # NVML's own errors, a missing library, another driver version
            answer = {"note": f"no NVIDIA GPU telemetry: {error}"}
            if nvml is not None:  # the next question may be answered
                answer["driver"] = _text(_ask(nvml, "nvmlSystemGetDriverVersion"))
        signal.alarm(0)
        print(json.dumps(answer, allow_nan=False), file=answers)
        if nvml is None:
            return


def _initialised() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _read(nvml: Any, *, with_holders: bool) -> dict[str, Any]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    return {
        "driver": _text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        "gpus": [_gpu(nvml, handle) for handle in handles],
        "holders": [_holders(nvml, handle) for handle in handles] if with_holders else [],
        "note": "" if handles else "no NVIDIA GPU in this machine",
    }


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    use = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    power = _number(_ask(nvml, "nvmlDeviceGetPowerUsage", handle))
    return {
        "name": _text(_ask(nvml, "nvmlDeviceGetName", handle)) or "GPU",
        "memory_used_bytes": _whole(getattr(memory, "used", None)),
        "memory_total_bytes": _whole(getattr(memory, "total", None)),
        "utilisation_percent": _number(getattr(use, "gpu", None)),
        "temperature_celsius": _number(_ask(nvml, "nvmlDeviceGetTemperature", handle, 0)),
        "power_watts": None if power is None else power / 1000,
    }


def _holders(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
    return [{"pid": int(found.pid), "bytes": _whole(getattr(found, "usedGpuMemory", None))} for found in processes]


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """The driver's answer, or None if it has none: MIG, WSL and old cards leave fields out."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:
        return None


def _number(value: Any) -> float | None:
    """None for what is no finite number: "N/A" among others."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # of older versions of pynvml
        return value.decode("utf-8", errors="replace")
    return None if value is None else str(value)
