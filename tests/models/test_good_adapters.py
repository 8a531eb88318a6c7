"""Adapters with different PEFT settings pass the whole stage, and headers are parsed as by safetensors."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from engine.core.errors import PreconditionError
from engine.models.adapters import weights as weights_module
from engine.models.adapters.header import HeaderError, read_header
from engine.models.adapters.weights import load_weights, read_weights_header
from engine.stages import adapter as stage
from tests.conftest import run_stage
from tests.support.damaged_adapters import WEIGHTS
from tests.support.tiny_models import TARGETS, build_adapter, build_context

HIDDEN, QUERIES, KEYS, WIDE, WORDS, LAYERS = 24, 24, 8, 40, 400, 2
ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def lora_parameters(rank: int, *modules: str) -> int:
    """The number of parameters of a LoRA of this rank on these modules in all layers: rank × (in + out) each."""
    sizes = {
        "q_proj": HIDDEN + QUERIES, "k_proj": HIDDEN + KEYS, "v_proj": HIDDEN + KEYS, "o_proj": QUERIES + HIDDEN,
        "gate_proj": HIDDEN + WIDE, "up_proj": HIDDEN + WIDE, "down_proj": WIDE + HIDDEN,
    }  # fmt: skip
    return LAYERS * rank * sum(sizes[module] for module in modules)


@dataclass(frozen=True)
class Good:
    parameters: int
    lines: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of LoraConfig; `dtype` is the number format of the file."""
    targets: list[str] = field(default_factory=lambda: sorted(TARGETS))


GOOD = {
    "rank and alpha patterns": Good(
        lora_parameters(3, "v_proj", "gate_proj", "down_proj") + lora_parameters(5, "q_proj"),
        {"rank": "3 in 6 modules, 5 in 2", "alpha": "7 in 6 modules, 11 in 2: scaling 1.4 to 3.667 (alpha/r)"},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 11}},
    ),
    "rsLoRA": Good(
        lora_parameters(3, *TARGETS), {"variant": "rsLoRA", "alpha": "7: scaling 4.041 (alpha/√r)"}, {"use_rslora": True}
    ),
    "DoRA": Good(  # and a magnitude for every output
        lora_parameters(3, *TARGETS) + LAYERS * (QUERIES + KEYS + WIDE + HIDDEN), {"variant": "DoRA"}, {"use_dora": True}
    ),
    "modules_to_save": Good(
        lora_parameters(3, *TARGETS) + WORDS * HIDDEN,
        {"target modules": "down_proj, gate_proj, q_proj, v_proj; trained in full: lm_head"},
        {"modules_to_save": ["lm_head"]},
    ),
    "all linear modules": Good(
        lora_parameters(3, *ALL), {"target modules": ", ".join(ALL)}, {"target_modules": "all-linear"}, ALL
    ),
    "queries and values only": Good(
        lora_parameters(3, "q_proj", "v_proj"), {"rank": "3"}, {"target_modules": ["v_proj", "q_proj"]}, ["q_proj", "v_proj"]
    ),
    "bfloat16": Good(lora_parameters(3, *TARGETS), {"size": "4,488 bytes, bfloat16"}, {"dtype": torch.bfloat16}),
    "float16": Good(lora_parameters(3, *TARGETS), {"size": "4,472 bytes, float16"}, {"dtype": torch.float16}),
    "no task_type": Good(lora_parameters(3, *TARGETS), {"rank": "3"}, {"task_type": None}),
    "DoRA with rsLoRA": Good(
        lora_parameters(3, *TARGETS) + LAYERS * (QUERIES + KEYS + WIDE + HIDDEN),
        {"variant": "DoRA, rsLoRA"},
        {"use_dora": True, "use_rslora": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_adapter_is_accepted_with_the_right_facts(name: str, stage2: tuple[Path, Path], tmp_path: Path):
    good = GOOD[name]
    adapter = build_adapter(tmp_path / "adapter", stage2[0], **good.settings)
    events, result = run_stage(stage.run(build_context(tmp_path / "run", stage2[0], adapter)))
    facts, data = result.facts, (adapter / WEIGHTS).read_bytes()
    assert facts["effect"] > 0.1
    assert (facts["rank"], facts["alpha"], facts["target_modules"]) == (3, 7, tuple(good.targets))
    assert facts["trainable_parameters"] == good.parameters
    assert (facts["bytes"], facts["adapter_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    details = {event.name: event.detail for event in events}
    assert {event.status for event in events} == {"ok"}
    assert details | good.lines == details
    assert details["trainable parameters"].startswith(f"{good.parameters:,} (")


def test_the_header_has_names_and_shapes_without_the_data(stage2: tuple[Path, Path], tmp_path: Path):
    """The file consists of its header only, so nothing after it was read."""
    data = (stage2[1] / WEIGHTS).read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = read_header(io.BytesIO(data[:length]), len(data))
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(stage2[1] / WEIGHTS).items()}
    assert header.shapes == expected
    assert header.parameters == sum(tensor.numel() for tensor in load_file(stage2[1] / WEIGHTS).values())


def test_the_tensors_are_those_that_safetensors_reads(stage2: tuple[Path, Path], tmp_path: Path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        adapter = build_adapter(tmp_path / str(dtype), stage2[0], dtype=dtype)
        ours, theirs = load_weights(adapter).tensors, load_file(adapter / WEIGHTS)
        assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_unaligned_tensors_are_read_too(stage2: tuple[Path, Path], tmp_path: Path):
    """safetensors pads its header to align them; other programs need not."""
    data = (stage2[1] / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    for spaces in (1, 2, 4):
        text = data[8 : 8 + length].rstrip() + b" " * spaces
        (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        ours = load_weights(tmp_path).tensors
        assert all(torch.equal(ours[name], tensor) for name, tensor in load_file(stage2[1] / WEIGHTS).items())


def test_whatever_safetensors_refuses_is_refused_here(stage2: tuple[Path, Path]):
    """600 files with random damage, in the header and at the end. If one passed, PEFT would raise in a later stage."""
    draw, data = random.Random(7), (stage2[1] / WEIGHTS).read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    theirs = ours = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 5])):
            position = draw.randrange(header_end)
            damaged[position] = draw.choice(
                [damaged[position] ^ (1 << draw.randrange(8)), draw.choice(b'0123456789[]{}",: ')]
            )
        if draw.random() < 0.2:
            damaged = damaged[: draw.randrange(len(damaged))]
        refused_here = _refuses(lambda: read_header(io.BytesIO(damaged), len(damaged)), HeaderError)  # noqa: B023
        refused_there = _refuses(lambda: safetensors.deserialize(bytes(damaged)), safetensors.SafetensorError)  # noqa: B023
        assert refused_here or not refused_there, bytes(damaged[:header_end])
        theirs, ours = theirs + refused_there, ours + refused_here
    assert 300 < theirs <= ours < 600  # damage that only renames a tensor is not an error of the header


def _refuses(read: Any, error: type[Exception]) -> bool:
    try:
        read()
    except error:
        return True
    return False


def test_hash_and_tensors_come_from_one_read(stage2: tuple[Path, Path], tmp_path: Path):
    weights, header = load_weights(stage2[1]), read_weights_header(stage2[1])
    assert weights.header == header
    assert weights.sha256 == hashlib.sha256((stage2[1] / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["empty", "shorter", "longer", "another"])
def test_a_file_that_changes_while_it_is_read_is_noticed(change: str, stage2: Any, tmp_path: Path, monkeypatch: Any):
    adapter = build_adapter(tmp_path / "adapter", stage2[0], modules_to_save=["lm_head"])  # longer than a read buffer
    data = (adapter / WEIGHTS).read_bytes()
    becomes = {"empty": b"", "shorter": data[:-1], "longer": data + b"x", "another": b"\xff" * len(data)}[change]

    def read_then_change(file: Any, size: int) -> Any:
        header = read_header(file, size)
        (adapter / WEIGHTS).write_bytes(becomes)
        return header

    monkeypatch.setattr(weights_module, "read_header", read_then_change)
    with pytest.raises(PreconditionError, match="to its end") as refused:
        load_weights(adapter)
    assert "file changed while" in refused.value.why
