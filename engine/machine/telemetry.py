"""GPU and host readings once a second, in a thread whose errors do not affect the training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread

import psutil

from engine.core.events import Telemetry
from engine.machine.gpus import GpuReader, GpuReport

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


def read_host(report: GpuReport, process: psutil.Process) -> Telemetry:
    memory = psutil.virtual_memory()
    return Telemetry(
        gpus=report.gpus,
        rss_bytes=process.memory_info().rss,
        host_used_bytes=memory.total - memory.available,
        host_total_bytes=memory.total,
        cpu_percent=psutil.cpu_percent(),
        note=report.note,
    )


class Sampler:
    """Calls `emit` with a reading every second until it is stopped."""

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
        process = psutil.Process()
        last_error = ""
        with GpuReader() as gpus:
            while not self._done.wait(INTERVAL_SECONDS):
                try:
                    self._emit(read_host(gpus.read(cancelled=self._done.is_set), process))
                except Exception as error:  # no error here is worth ending a run; the next reading may succeed
                    if last_error != repr(error):
                        log.exception("a reading of the machine failed; the run continues")
                    last_error = repr(error)
