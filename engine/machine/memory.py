"""Memory: halve batches when it runs out, free what is unused, and measure the peak."""

from __future__ import annotations

import atexit
import ctypes
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from engine.machine.device_errors import is_broken_device, is_out_of_memory

if TYPE_CHECKING:
    import torch

__all__ = [
    "MemoryPeak",
    "free_memory",
    "freeze_libraries",
    "halve_on_oom",
    "is_broken_device",
    "is_out_of_memory",
    "no_garbage_collection",
    "trim_memory",
]

T = TypeVar("T")


def halve_on_oom(work: Callable[[Sequence[int]], list[T]], rows: Sequence[int], free: Callable[[], None]) -> list[T]:
    """Call `work` on all rows at once, or on halves if memory runs out. Raises the error if a single row does not fit.

    The error is dropped before the retry, because its traceback keeps the tensors that filled the memory.
    """
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    free()
    middle = len(rows) // 2
    return halve_on_oom(work, rows[:middle], free) + halve_on_oom(work, rows[middle:], free)


class MemoryPeak:
    """Peak memory since this object was created: on a GPU, of the device; on the CPU, the resident memory of this process.

    A GPU's figure is what torch's allocator handed out, without the CUDA context (about 0.5 GB).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            # 5 makes the kernel reset the peak (proc(5)). If that is not allowed, the peak is that of the whole process.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        if self._device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        except (OSError, IndexError):  # not Linux, or the kernel does not report it
            import psutil

            return int(psutil.Process().memory_info().rss)


@cache
def freeze_libraries() -> None:
    """Exclude the 370,000 objects of torch, transformers and PEFT from garbage collection: scanning them takes a quarter of a
    second each time that memory is freed. Call this before loading a model, because frozen objects are never collected.
    """
    with no_garbage_collection():
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        gc.freeze()
    # Otherwise, the interpreter scans everything once more at exit, which takes a second.
    atexit.register(gc.freeze)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while large libraries are imported: their objects stay, and scanning them repeatedly takes a fifth
    of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def free_memory() -> None:
    """Free memory that no tensor uses any longer."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_memory() -> None:
    """`free_memory`, and also return the freed memory that the C library keeps to the system, for other processes."""
    free_memory()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
    if trim is not None:
        trim(0)
