"""GPU and host readings once a second, from a thread isolated from the training: neither's errors affect the other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Flag
from threading import Thread
from typing import Any

import psutil

from engine.core.events import GpuReading, Telemetry

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Holder:
    """A process that holds GPU memory."""

    pid: int
    whose: str
    """Owner and program, or why they are unknown. Never the command line, which may contain tokens."""
    bytes: int | None
    """None if the driver does not report it (WSL, MIG)."""

    def __str__(self) -> str:
        held = f", {self.bytes / (1 << 30):.1f} GiB" if self.bytes is not None else ""
        return f"process {self.pid} ({self.whose}{held})"


class Gpus:
    """NVML, if available. `note` says in one line why there is no reading."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        self.note = ""
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            if not self._handles:
                self.note = "no NVIDIA GPU in this machine"
        except Exception as error:  # NVML's own errors, a missing library, another driver version
            self.note = f"no NVIDIA GPU telemetry: {error}"

    def driver_version(self) -> str | None:
        version = self._ask("nvmlSystemGetDriverVersion")
        return None if version is None else str(version)

    def read(self) -> tuple[GpuReading, ...]:
        return tuple(self._reading(index, handle) for index, handle in enumerate(self._handles))

    def held_by_others(self, index: int) -> tuple[Holder, ...]:
        """The processes that hold memory of GPU `index`, this one left out."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", self._handles[index]) or ()
        return tuple(
            Holder(int(process.pid), _whose(int(process.pid)), getattr(process, "usedGpuMemory", None))
            for process in processes
            if process.pid != os.getpid()
        )

    def _reading(self, index: int, handle: Any) -> GpuReading:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        use = self._ask("nvmlDeviceGetUtilizationRates", handle)
        power = self._ask("nvmlDeviceGetPowerUsage", handle)
        return GpuReading(
            index=index,
            name=str(self._ask("nvmlDeviceGetName", handle) or "GPU"),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilisation_percent=None if use is None else float(use.gpu),
            temperature_celsius=self._ask("nvmlDeviceGetTemperature", handle, 0),
            power_watts=None if power is None else power / 1000,
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The driver's answer, or None if it has none: MIG, WSL and old cards leave fields out."""
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(*arguments)
        except Exception as error:
            log.debug("NVML %s: %s", function, error)
            return None


def _whose(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        ended = (
            ", which has ended and is a zombie: its parent must let go of it" if process.status() == "zombie" else ""
        )
        return f"{process.name()} of {process.username()}{ended}"
    except psutil.Error:
        return "outside of this container, or gone"


def gpu_of_cuda(number: int) -> int | None:
    """Which GPU, as the driver counts them, is `cuda:number` of this process; None if CUDA_VISIBLE_DEVICES names it in
    another way than by numbers.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return number
    shown = [name.strip() for name in visible.split(",")]
    return int(shown[number]) if number < len(shown) and shown[number].isdecimal() else None


def read_host(gpus: Gpus, process: psutil.Process) -> Telemetry:
    memory = psutil.virtual_memory()
    return Telemetry(
        gpus=gpus.read(),
        rss_bytes=process.memory_info().rss,
        host_used_bytes=memory.total - memory.available,
        host_total_bytes=memory.total,
        cpu_percent=psutil.cpu_percent(),
        note=gpus.note,
    )


class Sampler:
    """Calls `emit` with a reading every second until stopped."""

    def __init__(self, emit: Callable[[Telemetry], None]) -> None:
        self._emit = emit
        self._done = Flag()
        self._thread = Thread(target=self._sample, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=2 * INTERVAL_SECONDS)

    def _sample(self) -> None:
        gpus, process = Gpus(), psutil.Process()
        while not self._done.wait(INTERVAL_SECONDS):
            try:
                self._emit(read_host(gpus, process))
            except Exception:
                log.exception("telemetry ends here; the run goes on")
                return
