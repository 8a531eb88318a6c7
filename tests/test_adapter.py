"""Every way in which an adapter is broken is refused for its own reason, before a GPU hour is spent on it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import PreconditionError, UnsafeError
from engine.models.adapter import effect_on_logits, verified_adapter
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.stages import adapter as stage
from tests.conftest import run_stage
from tests.tiny_models import build_adapter, build_base, build_context

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stage2")
    base = build_base(folder / "base")
    return base, build_adapter(folder / "adapter", base)


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def cut_short(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 8)


def without_layer_1(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}


def one_layer_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = {n.replace("layers.1.", "layers.7."): t * 1.5 for n, t in tensors.items() if "layers.1.self_attn" in n}
    return {**tensors, **more}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors[next(iter(tensors))][0, 1] = float("nan")
    return tensors


def zero_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in tensors.items()}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base_model."): tensor for name, tensor in tensors.items()}


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no configuration": (
        lambda f: (f / "adapter_config.json").unlink(),
        PreconditionError,
        "There is no adapter_config",
    ),
    "configuration cut": (write("adapter_config.json", b'{"r": 3,'), PreconditionError, "is not JSON"),
    "configuration is a list": (write("adapter_config.json", b"[]"), PreconditionError, "peft_type None"),
    "another kind": (change_config(peft_type="IA3"), PreconditionError, "peft_type 'IA3'"),
    "LoRA on lm_head": (change_config(target_modules=["lm_head", "q_proj"]), PreconditionError, "LoRA on lm_head"),
    "LoRA on the embedding": (
        change_config(target_modules=["embed_tokens"]),
        PreconditionError,
        "LoRA on the embedding",
    ),
    "bias trained": (change_config(bias="lora_only"), PreconditionError, "bias 'lora_only'"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), PreconditionError, f"There is no {WEIGHTS}"),
    "git-lfs pointer": (
        write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
        PreconditionError,
        "git lfs pull",
    ),
    "web page": (write(WEIGHTS, b"<!doctype html><title>404</title>"), PreconditionError, "a web page"),
    "empty file": (write(WEIGHTS, b""), PreconditionError, "is empty"),
    "cut short": (cut_short, PreconditionError, "damaged or cut short"),
    "a layer missing": (change_tensors(without_layer_1), PreconditionError, "8 missing"),
    "a layer too many": (change_tensors(one_layer_more), PreconditionError, "4 unexpected"),
    "names without prefix": (change_tensors(renamed), PreconditionError, "16 missing"),
    "another rank": (change_config(r=5), PreconditionError, "wrong shape"),
    "target that the base has not": (change_config(target_modules=["c_attn"]), PreconditionError, "does not fit"),
    "NaN": (change_tensors(with_nan), PreconditionError, "NaN or infinity in 1 tensors"),
    "never trained": (change_tensors(zero_b), PreconditionError, "Every lora_B"),
    "weights in a pickle": (write("adapter_model.bin", b"\x80\x04."), UnsafeError, "adapter_model.bin"),
    "any other pickle": (write("extra.pkl", b"\x80\x04."), UnsafeError, "extra.pkl"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_adapter_is_refused_for_its_own_reason(case: str, stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    damage, error, reason = DAMAGE[case]
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    damage(folder)
    with pytest.raises(error, match=reason) as refused:
        verified_adapter(build_context(tmp_path / "run", base, adapter).config, folder)
    assert refused.value.what_to_do  # type: ignore[attr-defined]


def test_an_adapter_of_a_wider_base_is_refused_by_its_shapes(stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    wider = Path(shutil.copytree(base, tmp_path / "wider"))
    settings = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps({**settings, "hidden_size": 32}))
    with pytest.raises(PreconditionError, match="wrong shape"):
        verified_adapter(build_context(tmp_path / "run", wider, adapter).config, adapter)


def test_a_trainers_leftovers_are_named_and_never_opened(stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (folder / "training_args.bin").write_bytes(b"not even a pickle")
    events, _ = run_stage(stage.run(build_context(tmp_path / "run", base, folder)))
    assert [event.status for event in events if event.name == "training_args.bin"] == ["warning"]


def test_the_stage_records_the_hash_that_the_loaded_adapter_has(stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    context = build_context(tmp_path / "run", base, adapter)
    events, result = run_stage(stage.run(context))
    policy = load_policy(load_base(context.config), adapter)
    assert result.facts["tensors_sha256"] == hash_tensors(adapter_tensors(policy, "default"))
    assert result.facts["effect"] > 0
    assert (result.facts["rank"], result.facts["alpha"]) == (3, 7)
    assert result.facts["trainable_parameters"] == 1248
    assert {event.status for event in events} == {"ok"}


def test_the_hash_is_of_the_numbers_not_of_their_format(stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(adapter / WEIGHTS).items()}
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    save_file(half, folder / WEIGHTS)
    context = build_context(tmp_path / "run", base, folder)
    policy = load_policy(load_base(context.config), folder)
    assert verified_adapter(context.config, folder).tensors_sha256 == hash_tensors(adapter_tensors(policy, "default"))


def test_an_adapter_without_effect_is_refused(stage2: tuple[Path, Path], tmp_path: Path):
    base, adapter = stage2
    context = build_context(tmp_path / "run", base, adapter)
    policy = load_policy(load_base(context.config), adapter)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    with pytest.raises(PreconditionError, match="changes the logits by 0"):
        effect_on_logits(policy, load_tokenizer(context.config))
