"""Query NVML in a separate process, because the driver's library can hang, abort, and return text in place of numbers.

The child runs `serve`, which responds to every line on its standard input with one line of JSON. `engine.machine.gpus` is the
other end. Imports only the standard library and pynvml, so that the child starts quickly.
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
"""The request for a report that includes the processes that hold memory."""
MAX_SECONDS = 60
"""An alarm ends a child that hangs for this long, because its parent may be gone."""


def serve() -> None:
    """Respond until the standard input ends. Without NVML, there is only one response."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    responses = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # so that nothing the driver prints is taken for a response
    nvml: Any = None
    for request in sys.stdin:
        signal.alarm(MAX_SECONDS)
        try:
            nvml = nvml or _initialised()
            response = _read(nvml, with_holders=request.strip() == WITH_HOLDERS)
        except Exception as error:  # NVML's own errors, a missing library, another driver version
            response = {"note": f"no NVIDIA GPU telemetry: {error}"}
            if nvml is not None:  # the next request may succeed
                response["driver"] = _text(_call(nvml, "nvmlSystemGetDriverVersion"))
        signal.alarm(0)
        print(json.dumps(response, allow_nan=False), file=responses)
        if nvml is None:
            return


def _initialised() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _read(nvml: Any, *, with_holders: bool) -> dict[str, Any]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    return {
        "driver": _text(_call(nvml, "nvmlSystemGetDriverVersion")),
        "gpus": [_gpu(nvml, handle) for handle in handles],
        "holders": [_holders(nvml, handle) for handle in handles] if with_holders else [],
        "note": "" if handles else "no NVIDIA GPU in this machine",
    }


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    memory = _call(nvml, "nvmlDeviceGetMemoryInfo", handle)
    use = _call(nvml, "nvmlDeviceGetUtilizationRates", handle)
    power = _number(_call(nvml, "nvmlDeviceGetPowerUsage", handle))
    return {
        "name": _text(_call(nvml, "nvmlDeviceGetName", handle)) or "GPU",
        "memory_used_bytes": _integer(getattr(memory, "used", None)),
        "memory_total_bytes": _integer(getattr(memory, "total", None)),
        "utilisation_percent": _number(getattr(use, "gpu", None)),
        "temperature_celsius": _number(_call(nvml, "nvmlDeviceGetTemperature", handle, 0)),
        "power_watts": None if power is None else power / 1000,
    }


def _holders(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    processes = _call(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
    return [{"pid": int(found.pid), "bytes": _integer(getattr(found, "usedGpuMemory", None))} for found in processes]


def _call(nvml: Any, function: str, *arguments: Any) -> Any:
    """The function's return value, or None if it fails: MIG, WSL and old cards lack some fields."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:
        return None


def _number(value: Any) -> float | None:
    """The value as a float; None if it is not a finite number, such as "N/A"."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):  # of older versions of pynvml
        return value.decode("utf-8", errors="replace")
    return None if value is None else str(value)
