"""The GPUs as the driver reports them, queried in a child process with a time limit (`engine.machine.nvml`).

A driver that hangs or aborts takes down only the child: the fields are then blank, and `note` has the reason.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.core.events import GpuReading
from engine.machine.nvml import WITH_HOLDERS
from engine.process.children import clean_environment
from engine.security.sanitize import visible_line

FIRST_TIMEOUT_SECONDS = 20.0
"""The time limit for the first response: without persistence mode, the driver initialises each of eight GPUs first."""
TIMEOUT_SECONDS = 3.0
MAX_STARTS = 3
"""How many children are started in total, when they hang or die."""
POLL_SECONDS = 0.1
PYTHON = sys.executable
MAX_RESPONSE_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryHolder:
    """A process that holds GPU memory."""

    pid: int
    owner: str
    """The user and the program, or why they are unknown. Never the command line, which may contain tokens."""
    bytes: int | None
    """The memory that it holds; None if the driver does not report it (WSL, MIG)."""

    def __str__(self) -> str:
        held = f", {self.bytes / (1 << 30):.1f} GiB" if self.bytes is not None else ""
        return f"process {self.pid} ({self.owner}{held})"


@dataclass(frozen=True)
class GpuReport:
    """The driver's report at one moment."""

    driver: str | None = None
    gpus: tuple[GpuReading, ...] = ()
    holders: tuple[tuple[MemoryHolder, ...], ...] = ()
    """The processes that hold memory of each GPU, without this process; empty if they were not requested."""
    note: str = ""
    """Why there is no reading, in one line."""


class GpuReader:
    """Reads the GPUs repeatedly through one child process. For use in one thread."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._final_report: GpuReport | None = None
        """The report of all later reads, if there is no working NVML."""

    def read(self, *, with_holders: bool = False, cancelled: Callable[[], bool] = lambda: False) -> GpuReport:
        """Query once. Returns within the time limit, or soon after `cancelled` returns True. Never raises."""
        if self._final_report is not None:
            return self._final_report
        is_first = self._child is None
        try:
            response = self._query(
                WITH_HOLDERS if with_holders else "", FIRST_TIMEOUT_SECONDS if is_first else TIMEOUT_SECONDS, cancelled
            )
        except (OSError, ValueError) as error:  # the child did not start, died, hung or sent an invalid response
            return self._failed(str(error))
        report = _report(response)
        if "driver" not in response:
            self._final_report = report
            self.close()
        return report

    def close(self) -> None:
        """End the child by closing its input. A child that hangs is killed without waiting for it."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        for pipe in (child.stdin, child.stdout):
            _close(pipe)
        try:
            child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.poll()

    def __enter__(self) -> GpuReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, why: str) -> GpuReport:
        report = GpuReport(note=f"no NVIDIA GPU telemetry: {visible_line(why, 200)}")
        log.warning("%s (start %d of %d)", report.note, self._starts, MAX_STARTS)
        self.close()
        if self._starts >= MAX_STARTS:
            self._final_report = report
        return report

    def _query(self, request: str, seconds: float, cancelled: Callable[[], bool]) -> dict[str, Any]:
        if self._child is None:
            self._starts += 1
            self._child = _start()
        assert self._child.stdin is not None
        self._child.stdin.write(request.encode() + b"\n")
        self._child.stdin.flush()
        response = json.loads(_read_line(self._child, time.monotonic() + seconds, cancelled))
        if not isinstance(response, dict):
            raise ValueError("the response is not a JSON object")
        return response


def read_gpus(*, with_holders: bool = False, cancelled: Callable[[], bool] = lambda: False) -> GpuReport:
    """Query once, in a child of its own. Never raises."""
    with GpuReader() as gpus:
        report = gpus.read(with_holders=with_holders, cancelled=cancelled)
    if not cancelled():
        DRIVER_VERSIONS.append(report.driver)
    return report


DRIVER_VERSIONS: list[str | None] = []
"""The driver's version in each report that `read_gpus` got in this process."""


def driver_version(cancelled: Callable[[], bool] = lambda: False) -> str | None:
    """The version of the NVIDIA driver; None if none responds. A process queries once, so it never waits twice for a driver that
    hangs.
    """
    if not DRIVER_VERSIONS:
        read_gpus(cancelled=cancelled)
    return DRIVER_VERSIONS[-1] if DRIVER_VERSIONS else None


def _start() -> subprocess.Popen[bytes]:
    # The package's folder comes first on the path of `python -c`, so the child runs the same code.
    return subprocess.Popen(
        [PYTHON, "-c", "from engine.machine.nvml import serve; serve()"],
        cwd=Path(__file__).resolve().parents[2],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _read_line(child: subprocess.Popen[bytes], deadline: float, cancelled: Callable[[], bool]) -> bytes:
    """The next line from the child. Raises ValueError if it does not come in time."""
    assert child.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        if cancelled():
            raise ValueError("cancelled")
        if time.monotonic() > deadline:
            raise ValueError("the driver does not respond")
        if not select.select([child.stdout], [], [], POLL_SECONDS)[0]:
            continue
        data = os.read(child.stdout.fileno(), 1 << 16)
        line += data
        if not data:
            raise ValueError(f"the driver crashed the process that queried it ({_describe_end(child)})")
        if len(line) > MAX_RESPONSE_BYTES:
            raise ValueError("the response is too long")
    return line


def _describe_end(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it hangs"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # the child no longer reads what was not written yet
        return


def _report(response: dict[str, Any]) -> GpuReport:
    gpus = tuple(GpuReading(index=number, **gpu) for number, gpu in enumerate(response.get("gpus", ())))
    holders = tuple(
        tuple(
            MemoryHolder(one["pid"], _owner_of(one["pid"]), one["bytes"]) for one in of_gpu if one["pid"] != os.getpid()
        )
        for of_gpu in response.get("holders", ())
    )
    return GpuReport(response.get("driver"), gpus, holders, str(response.get("note", "")))


def _owner_of(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        ended = ", which has ended and is a zombie: its parent must reap it" if process.status() == "zombie" else ""
        return f"{process.name()} of {process.username()}{ended}"
    except psutil.Error:
        return "outside this container, or gone"


def gpu_of_cuda(number: int) -> int | None:
    """The driver's index of the GPU that this process calls `cuda:number`; None if CUDA_VISIBLE_DEVICES does not use indices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return number
    shown = [name.strip() for name in visible.split(",")]
    return int(shown[number]) if number < len(shown) and shown[number].isdecimal() else None
