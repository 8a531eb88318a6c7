"""Freed memory is available to other processes, and garbage collection pauses during large imports."""

from __future__ import annotations

import ctypes
import gc

import psutil
import pytest
import torch

from engine.machine.memory import no_garbage_collection, trim_memory

MIB = 1 << 20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps freed memory in this way")
def test_freed_memory_that_the_c_library_keeps_is_returned_to_the_system():
    start = psutil.Process().memory_info().rss
    torch.ones(30 * MIB // 4)  # after a block of this size was freed, glibc takes smaller ones from its heap
    held = []
    for _ in range(10):
        held += [torch.ones(20 * MIB // 4), torch.ones(16)]  # the small ones keep the heap from shrinking
    pins = held[1::2]
    del held
    trim_memory()
    assert psutil.Process().memory_info().rss - start < 50 * MIB and len(pins) == 10


def test_garbage_is_collected_again_after_imports_even_if_one_fails():
    with pytest.raises(ImportError), no_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_garbage_collection_stays_off_if_it_was_off_before_an_import():
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
