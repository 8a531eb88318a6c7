"""The GPUs as the driver reports them, asked in a child process with a time limit (`engine.machine.nvml`).

A driver that hangs or aborts takes the child with it, and nothing else: fields are blank then, and `note` says why.
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
"""For the first answer: without persistence mode the driver sets up each of eight GPUs first."""
TIMEOUT_SECONDS = 3.0
MAX_STARTS = 3
"""How often a child that hung or died is replaced, the first one counted."""
POLL_SECONDS = 0.1
PYTHON = sys.executable
MAX_RESPONSE_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryHolder:
    """A process that holds GPU memory."""

    pid: int
    owner: str
    """Owner and program, or why they are unknown. Never the command line, which may contain tokens."""
    bytes: int | None
    """None if the driver does not report it (WSL, MIG)."""

    def __str__(self) -> str:
        held = f", {self.bytes / (1 << 30):.1f} GiB" if self.bytes is not None else ""
        return f"process {self.pid} ({self.owner}{held})"


@dataclass(frozen=True)
class GpuReport:
    """What the driver said at one moment."""

    driver: str | None = None
    gpus: tuple[GpuReading, ...] = ()
    holders: tuple[tuple[MemoryHolder, ...], ...] = ()
    """By GPU, this process left out; empty if they were not asked for."""
    note: str = ""
    """Why there is no reading, in one line."""


class Gpus:
    """The child, kept for readings one after another. Safe to use from one thread."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._last_word: GpuReport | None = None
        """The report for good, if there is no NVML, or none that lives."""

    def read(self, *, with_holders: bool = False, cancelled: Callable[[], bool] = lambda: False) -> GpuReport:
        """Ask once. Returns within the limit, or soon after `cancelled` says so, and raises nothing."""
        if self._last_word is not None:
            return self._last_word
        is_first = self._child is None
        try:
            answer = self._ask(
                WITH_HOLDERS if with_holders else "", FIRST_TIMEOUT_SECONDS if is_first else TIMEOUT_SECONDS, cancelled
            )
        except (OSError, ValueError) as error:  # no process to be had, or it died, hung or talked nonsense
            return self._failed(str(error))
        report = _report(answer)
        if "driver" not in answer:
            self._last_word = report
            self.close()
        return report

    def close(self) -> None:
        """The end of input ends the child; one that hangs is killed, and not waited for."""
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

    def __enter__(self) -> Gpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, why: str) -> GpuReport:
        report = GpuReport(note=f"no NVIDIA GPU telemetry: {visible_line(why, 200)}")
        log.warning("%s (start %d of %d)", report.note, self._starts, MAX_STARTS)
        self.close()
        if self._starts >= MAX_STARTS:
            self._last_word = report
        return report

    def _ask(self, question: str, seconds: float, cancelled: Callable[[], bool]) -> dict[str, Any]:
        if self._child is None:
            self._starts += 1
            self._child = _start()
        assert self._child.stdin is not None
        self._child.stdin.write(question.encode() + b"\n")
        self._child.stdin.flush()
        answer = json.loads(_line_of(self._child, time.monotonic() + seconds, cancelled))
        if not isinstance(answer, dict):
            raise ValueError("the answer is no object")
        return answer


def read_gpus(*, with_holders: bool = False, cancelled: Callable[[], bool] = lambda: False) -> GpuReport:
    """Ask once, in a child for this alone. Raises nothing."""
    with Gpus() as gpus:
        report = gpus.read(with_holders=with_holders, cancelled=cancelled)
    if not cancelled():
        DRIVER.append(report.driver)
    return report


DRIVER: list[str | None] = []
"""What was said of the driver's version in this process."""


def driver_version(cancelled: Callable[[], bool] = lambda: False) -> str | None:
    """Of the NVIDIA driver; None without one that answers. A process asks once: one that hung is not waited for again."""
    if not DRIVER:
        read_gpus(cancelled=cancelled)
    return DRIVER[-1] if DRIVER else None


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


def _line_of(child: subprocess.Popen[bytes], deadline: float, cancelled: Callable[[], bool]) -> bytes:
    """The next line that the child says. Raises ValueError if there is none in time."""
    assert child.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        if cancelled():
            raise ValueError("not waited for")
        if time.monotonic() > deadline:
            raise ValueError("the driver does not answer")
        if not select.select([child.stdout], [], [], POLL_SECONDS)[0]:
            continue
        data = os.read(child.stdout.fileno(), 1 << 16)
        line += data
        if not data:
            raise ValueError(f"asking the driver ended the process that asked ({_ending(child)})")
        if len(line) > MAX_RESPONSE_BYTES:
            raise ValueError("the answer has no end")
    return line


def _ending(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(1.0)
    except subprocess.TimeoutExpired:
        return "and hangs"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was not written yet has no reader any more
        return


def _report(answer: dict[str, Any]) -> GpuReport:
    gpus = tuple(GpuReading(index=number, **gpu) for number, gpu in enumerate(answer.get("gpus", ())))
    holders = tuple(
        tuple(
            MemoryHolder(one["pid"], _owner_of(one["pid"]), one["bytes"]) for one in of_gpu if one["pid"] != os.getpid()
        )
        for of_gpu in answer.get("holders", ())
    )
    return GpuReport(answer.get("driver"), gpus, holders, str(answer.get("note", "")))


def _owner_of(pid: int) -> str:
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
