"""A base model that does not fit a single GPU: how many GPUs hold it, and that everything that runs it works on several."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

from engine.core.errors import PreconditionError
from engine.dpo.planning import process_count
from engine.dpo.planning.process_count import local_processes
from engine.models import placement
from engine.models.loading import gpus_for_base
from engine.models.placement import require_on_gpus
from engine.packaging import fresh_process
from tests.support.tiny_models import build_adapter, build_base


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="the installed torch does not support devices written in Python",
)
def test_results_on_two_devices_equal_those_on_one(tmp_path: Path):
    """Replies, relevance, log-probabilities of both adapters, and a training that resumes from its checkpoint; with the head on the
    first device and on the last."""
    for family, tied in (("gemma", True), ("llama", False)):
        base = build_base(tmp_path / family / "base", family=family, tie_word_embeddings=tied)
        build_adapter(tmp_path / family / "adapter", base)
    command = [sys.executable, "-m", "tests.models.split_over_two_devices", tmp_path]
    child = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert child.returncode == 0, child.stderr[-2000:]
    for one, two in json.loads(child.stdout.splitlines()[-1]):
        assert len(set(two["texts"])) == 7 and len(two["logps"]) == 8 and len(two["relevance"]) == 4
        assert two["ways"] == one["ways"] == [["chunked", ""], True]
        assert two["rows"] == one["rows"]
        assert two["texts"] == one["texts"] and two["tensors"] == one["tensors"] and two["losses"] == one["losses"]
        for name in ("logps", "relevance"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)


@pytest.mark.parametrize(
    "sharding, sizes, gpus",
    [
        ("fsdp", [1.2, 1.2], 2),
        ("fsdp", [1.2, 5, 5], 3),
        ("fsdp", [5, 5], 1),
        ("fsdp", [1.2], 1),
        ("fsdp", [], 1),
        ("ddp", [1.2, 1.2], 1),
    ],
)
def test_a_base_uses_several_gpus_only_if_one_is_too_small(
    sharding: str,
    sizes: list[float],
    gpus: int,
    stage2: tuple[Path, Path],
    config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
):
    """sizes: memory of each GPU, as a multiple of the size of the model's weights."""
    weights = (stage2[0] / "model.safetensors").stat().st_size
    monkeypatch.setattr(placement, "_gpu_memory", lambda _: [int(size * weights) for size in sizes])
    given = config(base_model_id=str(stage2[0]), sharding=sharding, num_processes=2, device="cpu", dtype="float32")
    assert gpus_for_base(given) == gpus
    assert local_processes(given) == (1 if gpus > 1 else 2)


def test_a_known_number_of_processes_is_not_computed(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Otherwise `plan` and the start page would import torch."""
    monkeypatch.setattr(process_count, "number_of_processes", pytest.fail)
    monkeypatch.setattr(placement, "_gpu_memory", pytest.fail)
    assert local_processes(config(), 4) == 4


def test_layers_that_fit_no_gpu_are_refused():
    model = torch.nn.Linear(2, 2)
    require_on_gpus(SimpleNamespace(hf_device_map={"model.layers.0": 0, "lm_head": 1}), 2)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(PreconditionError, match=r"The 2 GPUs of this machine are too small.*model\.layers\.1"):
        require_on_gpus(model, 2)


def test_packagings_fresh_process_loads_the_base_where_the_run_does(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments: list[dict[str, Any]] = []

    def child(command: list[str], **_: Any) -> SimpleNamespace:
        arguments.append(json.loads(command[-1]))
        return SimpleNamespace(ok=True, output=(json.dumps({"effect": 1.0, "tensors_sha256": "x"}),))

    monkeypatch.setattr(fresh_process, "run_child", child)
    fresh_process.load_in_fresh_process(tmp_path / "run.zip", config(sharding="fsdp", device="cpu"))
    assert arguments[0]["sharding"] == "fsdp" and arguments[0]["device"] == "cpu"
