"""The driver's index of each CUDA device."""

from __future__ import annotations

import pytest

from engine.machine.gpus import gpu_of_cuda


@pytest.mark.parametrize(
    ("visible", "number", "gpu"),
    [(None, 1, 1), ("3,5", 1, 5), (" 3 , 5", 0, 3), ("3", 1, None), ("GPU-8f3a", 0, None), ("", 0, None)],
)
def test_the_driver_counts_gpus_that_cuda_does_not_see(monkeypatch, visible, number, gpu):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_of_cuda(number) == gpu
