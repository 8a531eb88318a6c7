"""Memory that runs out: batches are halved, and what no tensor uses any more is given back."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from engine.machine.device_errors import is_broken_device, is_out_of_memory

if TYPE_CHECKING:
    import torch

__all__ = ["MemoryPeak", "free_memory", "in_halves", "is_broken_device", "is_out_of_memory"]

T = TypeVar("T")


def in_halves(work: Callable[[Sequence[int]], list[T]], rows: Sequence[int], free: Callable[[], None]) -> list[T]:
    """`work` on all rows at once, or on halves of them where memory runs out. Raises the error for a single row.

    The error is let go of before the retry: its traceback holds the tensors that filled the memory.
    """
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    free()
    middle = len(rows) // 2
    return in_halves(work, rows[:middle], free) + in_halves(work, rows[middle:], free)


class MemoryPeak:
    """The most memory that was in use since this was made: on the device where it is a GPU, else of this process, resident.

    A GPU's is what torch's allocator had handed out; the CUDA context (some 0.5 GB) comes on top.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            # 5 makes the kernel forget the peak so far (proc(5)); where that is not allowed it is that of the process.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        if self._device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        except (OSError, IndexError):  # no Linux, or a kernel that keeps this to itself
            import psutil

            return int(psutil.Process().memory_info().rss)


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
