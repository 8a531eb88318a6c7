"""Device errors told apart by their text: out of memory (less may fit) and a broken CUDA context (nothing will)."""

from __future__ import annotations

import re

_NO_MEMORY_TEXT = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_OF_CUDA = re.compile(r"CUDA|CUBLAS|CUDNN|NCCL", re.IGNORECASE)
_BROKEN_TEXT = re.compile(
    r"device-side assert|illegal memory access|misaligned address|illegal instruction|unspecified launch failure"
    r"|launch timed out|uncorrectable|_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|unknown error|Xid",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may fit: not so where the device is broken, nothing fits there any more."""
    spent = isinstance(error, MemoryError) or _NO_MEMORY_TEXT.search(str(error)) is not None
    return spent and not is_broken_device(error)


def is_broken_device(error: BaseException) -> bool:
    """Whether the CUDA context of this process is lost: every call after this one fails as well (pytorch#2300)."""
    text = str(error)
    return (
        isinstance(error, RuntimeError) and _OF_CUDA.search(text) is not None and _BROKEN_TEXT.search(text) is not None
    )
