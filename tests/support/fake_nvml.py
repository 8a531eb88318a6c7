"""A stand-in for pynvml on machines without a GPU."""

from __future__ import annotations

from types import SimpleNamespace


class FakeNvml:
    """One GPU of 24 GiB with driver 570, and the processes that hold memory of it."""

    def __init__(self, *holders: SimpleNamespace) -> None:
        self.holders = list(holders)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.86.10"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA L4\x1b[2J"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=18 << 30, total=24 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return self.holders


def holder(pid: int, held: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=held)
