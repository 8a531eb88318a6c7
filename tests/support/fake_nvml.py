"""A stand-in for pynvml on a machine without a GPU, with the functions that are used. The child that queries NVML imports it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ONE_GPU = '''
"""One GPU of 24 GiB with driver 570."""
import os, time
from types import SimpleNamespace

HOLDERS = {holders}

def nvmlInit(): ...
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlSystemGetDriverVersion(): return "570.86.10"
def nvmlDeviceGetName(handle): return "NVIDIA L4\\x1b[2J"
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(used=18 << 30, total=24 << 30)
def nvmlDeviceGetUtilizationRates(handle): return SimpleNamespace(gpu=7)
def nvmlDeviceGetPowerUsage(handle): return 31500
def nvmlDeviceGetTemperature(handle, sensor): return 41
def nvmlDeviceGetComputeRunningProcesses(handle):
    return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in HOLDERS]
'''


def fake_nvml(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *holders: tuple[int, int | None], instead: str = ""
) -> None:
    """Replace pynvml for child processes of this test.

    holders   (pid, bytes held) of processes that hold memory of the GPU
    instead   Python that replaces some of the functions, or all of the module by failing
    """
    path = folder / "nvml"
    path.mkdir(exist_ok=True)
    (path / "pynvml.py").write_text(ONE_GPU.format(holders=list(holders)) + instead)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path), *([before] if before else [])]))
    monkeypatch.setattr("engine.machine.gpus.DRIVER_VERSIONS", [])
