"""Classify device errors by their text: out of memory (a smaller batch may fit) or a broken CUDA context (nothing will work)."""

from __future__ import annotations

import re

_NO_MEMORY_TEXT = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_CUDA_TEXT = re.compile(r"CUDA|CUBLAS|CUDNN|NCCL", re.IGNORECASE)
_BROKEN_TEXT = re.compile(
    r"device-side assert|illegal memory access|misaligned address|illegal instruction|unspecified launch failure"
    r"|launch timed out|uncorrectable|_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|unknown error|Xid",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, so that a smaller batch may fit. False if the device is broken."""
    exhausted = isinstance(error, MemoryError) or _NO_MEMORY_TEXT.search(str(error)) is not None
    return exhausted and not is_broken_device(error)


def is_broken_device(error: BaseException) -> bool:
    """Whether this process has lost its CUDA context, so that every later call also fails (pytorch#2300)."""
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and _CUDA_TEXT.search(text) is not None
        and _BROKEN_TEXT.search(text) is not None
    )
