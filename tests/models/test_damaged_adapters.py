"""Every kind of damage to an adapter is refused for its own reason, before any weight of the base model is read.

The base model that they are checked against has no weights at all: its folder contains a configuration and a tokenizer.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core.errors import ExitCode, PreconditionError, Stage3Error
from engine.core.events import Check
from engine.stages import adapter as stage
from tests.support.damaged_adapters import (
    CONFIG,
    WEIGHTS,
    Damage,
    added,
    appended,
    both,
    cut,
    dropped,
    each,
    every_second,
    fifo,
    first_name_twice,
    flipped,
    header,
    header_length_of,
    linked,
    moved,
    one_number,
    remove,
    renamed,
    settings,
    tensors,
    tokenizer_of,
    with_header_field,
    without_setting,
    write,
)  # fmt: skip
from tests.support.tiny_models import FAMILIES, build_adapter, build_base, build_context

MISSING, UNSAFE = ExitCode.PRECONDITION, ExitCode.UNSAFE
PREFIX = "base_model.model."
Q, DOWN = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_", f"{PREFIX}model.layers.1.mlp.down_proj.lora_"
EMBEDDING = f"{PREFIX}model.embed_tokens.weight"
PICKLE = b"\x80\x04N."
EXPORT, DOWNLOAD, OTHER_BASE = (
    "Export the Stage 2 adapter again",
    "Copy or download it again",
    "--base-model-id",
)


@dataclass(frozen=True)
class Case:
    damage: Damage
    exit_code: ExitCode
    reason: str
    """A pattern for `what` and `why` of the error, which matches no other case."""
    remedy: str
    """Part of `what_to_do`."""
    adapter: str = "plain"
    """Which adapter is damaged."""


def refused(damage: Damage, reason: str, remedy: str, adapter: str = "plain") -> Case:
    return Case(damage, MISSING, reason, remedy, adapter)


def unsafe(damage: Damage, reason: str, remedy: str) -> Case:
    return Case(damage, UNSAFE, reason, remedy)


FOLDER = {
    "no folder": refused(
        shutil.rmtree, "Found no Stage 2 adapter at .*/adapter[.] Stage 3 starts from", "--adapter-path"
    ),
    "a file instead of the folder": refused(
        lambda folder: (shutil.rmtree(folder), folder.write_text("")),
        "is a file, but an adapter is a folder",
        "its folder",
    ),
    "no configuration": refused(remove(CONFIG), f"has no {CONFIG}", EXPORT),
    "no weights": refused(remove(WEIGHTS), f"has no {WEIGHTS}[.] That file contains the adapter's weights", EXPORT),
    "a full model instead of the weights": refused(
        lambda f: (f / WEIGHTS).rename(f / "model.safetensors"),
        "It has model.safetensors, but a full model",
        EXPORT,
    ),
    "weights only in a pickle": unsafe(
        both(remove(WEIGHTS), write("adapter_model.bin", PICKLE)),
        "its weights only in adapter_model.bin",
        "save it again",
    ),
    "weights also in a pickle": unsafe(
        write("adapter_model.bin", PICKLE), f"contains adapter_model.bin beside {WEIGHTS}", "Remove it"
    ),
    "another pickle beside the weights": unsafe(write("extra.PKL", PICKLE), "contains extra.PKL beside", "Remove it"),
    "weights that are a link out of the folder": unsafe(
        linked(WEIGHTS, "../elsewhere/x"),
        f"{WEIGHTS} is a link out of the folder",
        "Replace the link with a copy of the file",
    ),
    "a configuration that is a link out of the folder": unsafe(
        linked(CONFIG, "../elsewhere/y"),
        f"{CONFIG} is a link out of the folder",
        "Replace the link with a copy of the file",
    ),
    "weights that are a pipe": unsafe(fifo(WEIGHTS), "is not a regular file", EXPORT),
}

SETTINGS = {
    "a truncated configuration": refused(write(CONFIG, b'{"r": 3,'), "is not JSON.*JSONDecodeError", EXPORT),
    "a configuration in another encoding": refused(
        write(CONFIG, b'{"r": "\xe9"}'), "is not JSON.*UnicodeDecode", EXPORT
    ),
    "an endlessly nested configuration": refused(
        write(CONFIG, b"[" * 200_000), "is not JSON.*nested too deeply", EXPORT
    ),
    "a configuration that is a list": refused(write(CONFIG, b"[]"), "not a JSON object, but a list", EXPORT),
    "no peft_type": refused(without_setting("peft_type"), "has no peft_type", EXPORT),
    "IA3": refused(settings(peft_type="IA3"), "peft_type 'IA3', not 'LORA'", "peft.LoraConfig"),
    "prompt tuning": refused(settings(peft_type="PROMPT_TUNING"), "peft_type 'PROMPT_TUNING'", "peft.LoraConfig"),
    "a PEFT type of the future": refused(settings(peft_type="FUTURELORA"), "peft_type 'FUTURELORA'", "peft.LoraConfig"),
    "LoRA in lower case": refused(settings(peft_type="lora"), "peft_type 'lora'.*in capitals", "peft.LoraConfig"),
    "a rank that is a word": refused(settings(r="three"), "PEFT cannot use.*r = 'three'", EXPORT),
    "a rank of zero": refused(settings(rank_pattern={"q_proj": 0}), "rank_pattern.q_proj = 0", EXPORT),
    "a classifier's adapter": refused(settings(task_type="SEQ_CLS"), "task_type 'SEQ_CLS'", "Pass the Stage 2 adapter"),
    "an unknown task": refused(settings(task_type="TELEPATHY"), "task_type 'TELEPATHY'", "Pass the Stage 2 adapter"),
    "no such target modules": refused(
        settings(target_modules=["c_attn"]), "does not apply to .* It targets c_attn. PEFT's error for", OTHER_BASE
    ),
    "an invalid pattern": refused(
        settings(target_modules="q_proj("), r"does not apply to .* It targets q_proj\(", OTHER_BASE
    ),
    "code named by auto_map": unsafe(
        both(settings(auto_map={"AutoModel": "model.Mine"}), write("model.py", b"raise SystemExit")),
        "names code to run: auto_map .*model.Mine.* model.py is beside it",
        "transformers supports itself",
    ),
    "a third party's model class": unsafe(
        settings(auto_mapping={"base_model_class": "Mine", "parent_library": "transformers_modules.someone.mine"}),
        "a model class of 'transformers_modules.someone.mine'",
        "transformers supports itself",
    ),
    "a module to import": unsafe(
        settings(megatron_config={"x": 1}, megatron_core="os.path"),
        "megatron_core 'os.path'",
        "transformers supports itself",
    ),
}

UNTRAINABLE = {
    "bias": refused(settings(bias="lora_only"), "DPO cannot train.*bias 'lora_only'", "Train Stage 2 without it"),
    "a bias in lora_B": refused(
        settings(lora_bias=True), "uses lora_bias: PEFT cannot merge it", "Train Stage 2 without it"
    ),
    "LoRA on the embedding": refused(
        settings(target_modules=["embed_tokens", "q_proj"]), "LoRA on the embedding", "Train Stage 2 without it"
    ),
    "LoRA on the embedding, by a pattern": refused(
        settings(target_modules=r".*\.embed_tokens"), "LoRA on the embedding", "Train Stage 2 without it"
    ),
    "LoRA on the head": refused(
        settings(target_modules=["lm_head", "q_proj"]), "LoRA on the head", "Train Stage 2 without it"
    ),
    "trainable token indices": refused(
        settings(trainable_token_indices=[5]), "uses trainable_token_indices", "Train Stage 2 without it"
    ),
    "replicated layers": refused(settings(layer_replication=[[0, 2], [1, 2]]), "uses layer_replication", "without it"),
    "activated LoRA": refused(settings(alora_invocation_tokens=[5]), "uses alora_invocation_tokens", "without it"),
    "PiSSA": refused(settings(init_lora_weights="pissa_niter_4"), "init_lora_weights 'pissa_niter_4'", "a plain LoRA"),
    "OLoRA": refused(settings(init_lora_weights="olora"), "init_lora_weights 'olora'", "a plain LoRA"),
    "an unknown initialisation": refused(
        settings(init_lora_weights="zen"), "has init_lora_weights 'zen'.*does not support it", "a plain LoRA"
    ),
}

FILE = {
    "a git-lfs pointer": refused(write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer", "lfs pull"),
    "a web page": refused(write(WEIGHTS, b"<!doctype html><title>404</title>"), "is a web page", DOWNLOAD),
    "an empty file": refused(write(WEIGHTS, b""), f"{WEIGHTS} is empty", DOWNLOAD),
    "truncated in the length": refused(cut(lambda data, size: 5), "truncated: it has 5 bytes", DOWNLOAD),
    "truncated in the header": refused(cut(lambda data, size: data - 100), "truncated in the header", DOWNLOAD),
    "truncated in the data": refused(cut(lambda data, size: (data + size) // 2), "truncated in the data", DOWNLOAD),
    "truncated by a byte": refused(cut(lambda data, size: size - 1), r"truncated in the data: .* 6,968 .* 6,967", DOWNLOAD),
    "an absurd header": refused(header_length_of(1 << 62), "header would be 4,611,686,018,427,387,904 bytes", DOWNLOAD),
    "a bit flipped before the header": refused(flipped(lambda data: 8), "does not begin with '{'", DOWNLOAD),
    "a bit flipped in the header": refused(flipped(lambda data: data.index(b'"dtype"')), "not valid JSON: Exp", DOWNLOAD),
    "a bit flipped in a format's name": refused(
        flipped(lambda data: data.index(b"F32")), "unknown number format 'f32'", DOWNLOAD
    ),
    "a duplicate name": refused(header(first_name_twice), "Its header names .* twice", DOWNLOAD),
    "an invalid shape": refused(header(with_header_field("shape", [-3, 24])), r"the invalid shape \[-3, 24\]", DOWNLOAD),
    "a shape of another size": refused(header(with_header_field("shape", [3, 25])), r"not match the shape \[3, 25\]", DOWNLOAD),
    "tensors that overlap": refused(header(moved(-4, -4)), "overlaps .* by 4 bytes", DOWNLOAD),
    "a gap between tensors": refused(header(moved(8, 8)), "a gap of 8 bytes before", DOWNLOAD),
    "bytes after the end": refused(appended(b"12"), "2 extra bytes follow the last tensor", DOWNLOAD),
    "integers": refused(each(lambda n, t: (n, t.to(torch.int8))), "numbers in I8", "before quantising its weights"),
    "eight-bit floats": refused(each(lambda n, t: (n, t.to(torch.float8_e4m3fn))), "in F8_E4M3", "before quantising"),
}  # fmt: skip

TENSORS = {
    "one tensor missing": refused(
        dropped(lambda name: name == f"{Q}B.weight"), r"incomplete: 1 of its 16 tensors are missing \(.*q_proj.lora_B", EXPORT
    ),
    "a layer missing": refused(dropped(lambda n: ".layers.0." in n), r"missing \(all of layer 0\).* 624 numbers", EXPORT),
    "the last layer missing": refused(dropped(lambda n: ".layers.1." in n), r"missing \(all of layer 1\)", EXPORT),
    "a layer missing, and another rank": refused(
        both(dropped(lambda n: ".layers.0." in n), settings(r=4)), r"tensors are missing \(all of layer 0\).* 832 numbers", EXPORT
    ),
    "half of the tensors missing": refused(dropped(every_second()), r"8 of its 16 tensors are missing \(base_model", EXPORT),
    "saved from a wrapped model": refused(renamed(lambda n: f"module.{n}"), "contain 'module.'.*wrapped model", "unwrap_model"),
    "saved from a compiled model": refused(
        renamed(lambda n: n.replace("model.layers", "_orig_mod.model.layers")), "contain '_orig_mod.'", "unwrap_model"
    ),
    "saved with the adapter's name": refused(
        renamed(lambda n: n.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")),
        "contain the adapter's own name",
        EXPORT,
    ),
    "names without their prefix": refused(renamed(lambda n: n.removeprefix(PREFIX)), f"do not begin with '{PREFIX}'", EXPORT),
    "names of a vision model": refused(
        renamed(lambda n: n.replace("model.layers", "language_model.layers")), "None of its tensor names match", OTHER_BASE
    ),
    "extra tensors": refused(
        added(**{f"{PREFIX}model.layers.1.mlp.up_proj.lora_{a}.weight": torch.ones(2, 2) for a in "AB"}),
        "has 2 more tensors than its configuration", EXPORT,
    ),
    "an extra layer": refused(
        tensors(lambda t: {**t, **{n.replace("layers.1", "layers.7"): t[n] * 1.5 for n in t if "layers.1" in n}}),
        "tensors of layer 7, but the base model's last layer is 1", OTHER_BASE,
    ),
    "DoRA only in the configuration": refused(settings(use_dora=True), r"missing \(.*lora_magnitude_vector", EXPORT),
    "another rank": refused(settings(r=5), "have rank 3, but its configuration has 5", EXPORT),
    "a transposed tensor": refused(
        each(lambda n, t: (n, t.T.contiguous() if n == f"{DOWN}A.weight" else t)), r"transposed: \(40, 3\) instead", EXPORT
    ),
    "a tensor with an extra dimension": refused(
        each(lambda n, t: (n, t[None] if n == f"{DOWN}B.weight" else t)), r"1 of 16 tensors have the wrong shape", OTHER_BASE
    ),
    "trained on another architecture": refused(
        settings(auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}),
        "trained on a LlamaForCausalLM, but this is a GemmaForCausalLM", OTHER_BASE,
    ),
    "a larger vocabulary in the embedding": refused(
        added(**{EMBEDDING: torch.ones(408, 24)}), "different vocabulary.*408 rows; the base model has 400", "resize_token"
    ),
    "a larger vocabulary in a saved head": refused(
        each(lambda n, t: (n, torch.cat([t, t[:3]]) if "lm_head" in n else t)), "lm_head.weight with 403 rows", "resize_",
        adapter="whole_head",
    ),
    "the base model's own embedding": refused(
        added(**{EMBEDDING: torch.ones(400, 24)}), "contains the base model's own .*embed_tokens.weight", "save_embedding_layers"
    ),
    "a larger vocabulary in its tokenizer": refused(
        tokenizer_of(402), "tokenizer beside the adapter.* token ids up to 401; .* has 400", "resized"
    ),
}  # fmt: skip

NUMBERS = {
    "one NaN": refused(one_number("lora_A", float("nan")), r"in 1 of its 16 tensors .*lora_A.* contains NaN", "checkpoint"),
    "one infinity": refused(one_number("lora_B", float("-inf")), "in 1 of its 16 tensors .* contains an inf", "checkpoint"),
    "a NaN in a full module": refused(
        one_number("lm_head", float("nan")), r"in 1 of its 17 tensors \(base_model.model.lm_head.weight\)", "checkpoint",
        adapter="whole_head",
    ),
    "never trained": refused(
        each(lambda n, t: (n, torch.zeros_like(t) if "lora_B" in n else t)), "Every lora_B .* is zero", EXPORT
    ),
}  # fmt: skip

CASES = FOLDER | SETTINGS | UNTRAINABLE | FILE | TENSORS | NUMBERS


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good adapters to damage, and a base model without weights."""
    folder = tmp_path_factory.mktemp("kit")
    base = build_base(folder / "base")
    adapters = {
        "base": base,
        "plain": build_adapter(folder / "plain", base),
        "whole_head": build_adapter(folder / "whole", base, modules_to_save=["lm_head"]),
    }
    (base / "model.safetensors").unlink()
    return adapters


def refusal(context: Any) -> tuple[Stage3Error, list[Check]]:
    """The stage's error, and the checks that it reported before."""
    checks: list[Check] = []
    with pytest.raises(Stage3Error) as error:
        for event in stage.run(context):
            checks.append(event)
    return error.value, checks


@pytest.fixture(scope="module")
def refusals(
    kit: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Stage3Error, list[Check]]]:
    """The error and the checks of every case."""
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        folder = tmp_path_factory.mktemp(f"case{number}")
        adapter = Path(shutil.copytree(kit[case.adapter], folder / "adapter"))
        context = build_context(folder / "run", kit["base"], adapter)
        case.damage(adapter)
        found[name] = refusal(context)
    return found


def error_text(error: Stage3Error) -> str:
    return f"{error.what} {error.why}"


@pytest.mark.fault("D11", "D13")
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_adapter_is_refused_for_its_own_reason(name: str, refusals: Any):
    case, (error, checks) = CASES[name], refusals[name]
    assert re.search(case.reason, error_text(error)), error
    assert case.remedy in error.what_to_do
    assert error.exit_code == case.exit_code
    assert (checks[-1].status, checks[-1].detail) == ("failed", error.what)
    assert [check.status for check in checks[:-1]].count("failed") == 0


def test_no_reason_is_that_of_another_case(refusals: Any):
    same = {"LoRA on the embedding", "LoRA on the embedding, by a pattern"}
    for name, case in CASES.items():
        others = {other for other, (error, _) in refusals.items() if re.search(case.reason, error_text(error))} - {name}
        if name == "truncated in the data":
            others -= {"truncated by a byte"}  # two cuts of the same kind
        assert not others - same, f"{name}: {others}"


def test_there_are_enough_cases():
    assert len(CASES) > 70
    assert sum(case.exit_code is UNSAFE for case in CASES.values()) >= 8


# -- adapters of another base ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A base model without weights and an adapter for it, per family."""
    folder, adapters = tmp_path_factory.mktemp("families"), {}
    for family in FAMILIES:
        base = build_base(folder / family, family=family)
        adapters[family] = base, build_adapter(folder / f"{family}-adapter", base)
        (base / "model.safetensors").unlink()
    return adapters


@pytest.mark.fault("D12")
@pytest.mark.parametrize("theirs", FAMILIES)
@pytest.mark.parametrize("ours", FAMILIES)
def test_an_adapter_of_another_family_is_refused_by_its_shapes(ours: str, theirs: str, families: Any, tmp_path: Path):
    error, checks = refusal(build_context(tmp_path / "run", families[ours][0], families[theirs][1]))
    if ours == theirs:  # it fits, and only the base model's weights are missing
        assert (error.what, checks[-1].name) == (f"Cannot read the base model {families[ours][0]}.", "base model")
        assert [check.name for check in checks if check.status == "ok"][-1] == "tensors"
        return
    assert isinstance(error, PreconditionError)
    assert "does not fit" in error.what and "tensors have the wrong shape" in error.why
    assert error.why.endswith(f"Its configuration names {families[theirs][0]}.")
    assert OTHER_BASE in error.what_to_do
    assert [check.status for check in checks if check.name == "named base"] == ["warning"]


def test_an_adapter_of_a_deeper_or_shallower_base_is_reported_by_its_layers(families: Any, tmp_path: Path):
    base, adapter = families["gemma"]
    deep = build_base(tmp_path / "deep", num_hidden_layers=3, hidden_size=30)
    error, _ = refusal(build_context(tmp_path / "run", base, build_adapter(tmp_path / "deep-adapter", deep)))
    assert "It has tensors of layer 2, but the base model's last layer is 1." in error.why
    error, _ = refusal(build_context(tmp_path / "run2", deep, adapter))
    assert "Its last layer is 1, the base model's is 2, and the shapes differ." in error.why


def test_of_two_architectures_with_the_same_shapes_only_pefts_record_distinguishes(families: Any, tmp_path: Path):
    """Names and shapes are the same, so only the class that PEFT recorded (if there is no task_type) differs."""
    sizes = dict(FAMILIES["gemma"][1])
    llama = build_base(tmp_path / "llama", family="llama", **sizes)
    with_note = build_adapter(tmp_path / "with", llama, task_type=None)
    error, _ = refusal(build_context(tmp_path / "run", families["gemma"][0], with_note))
    assert "trained on a LlamaForCausalLM, but this is a GemmaForCausalLM." in error.why
    without = build_adapter(tmp_path / "without", llama)
    error, checks = refusal(build_context(tmp_path / "run2", families["gemma"][0], without))
    assert "Cannot read" in error.what  # only the base model's weights are missing
    assert [check.status for check in checks if check.name == "named base"] == ["warning"]


def test_a_folder_of_checkpoints_names_the_newest_that_contains_an_adapter(kit: Any, tmp_path: Path):
    training = tmp_path / "training"
    for step in (9, 10, 20):
        shutil.copytree(kit["plain"], training / f"checkpoint-{step}")
    (training / "checkpoint-30").mkdir()
    (training / "training_args.bin").write_bytes(PICKLE)
    context = build_context(tmp_path / "run", kit["base"], kit["plain"])
    context.config = context.config.model_copy(update={"adapter_path": str(training)})
    error, _ = refusal(context)
    assert error.exit_code is MISSING and "checkpoints" in error.why
    assert error.what_to_do.endswith(f"--adapter-path {training / 'checkpoint-20'}")
