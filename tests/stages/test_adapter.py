"""Stage adapter with a good adapter, and with one that is almost good."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.core.config import Stage3Config
from engine.core.errors import PreconditionError, Stage3Error, UnsafeError
from engine.core.events import Check
from engine.models.adapters.effect import effect_on_logits, logits_of, refuse_rounded
from engine.models.adapters.source import adapter_folder, adapter_source
from engine.models.adapters.summary import named_base
from engine.models.adapters.weights import load_weights
from engine.models.loading import load_base, load_policy, load_tokenizer
from engine.models.tensors import adapter_tensors, hash_tensors
from engine.run.context import Context
from engine.stages import adapter as stage
from tests.conftest import run_stage
from tests.support.damaged_adapters import CONFIG, WEIGHTS, added, each, settings, tokenizer_of
from tests.support.tiny_models import build_adapter, build_base, build_context

Stage2 = tuple[Path, Path]


def copy_of(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def checks(context: Context) -> list[Check]:
    events, _ = run_stage(stage.run(context))
    return events


def line(events: list[Check], name: str) -> tuple[str, str]:
    (found,) = [(event.status, event.detail) for event in events if event.name == name]
    return found


# -- the card and the facts --------------------------------------------------------------------------------------------


def test_the_card_has_its_lines_in_order(stage2: Stage2, tmp_path: Path):
    events = checks(build_context(tmp_path / "run", *stage2))
    assert [event.name for event in events] == [
        "folder", "named base", "rank", "alpha", "target modules", "trainable parameters", "size", "sha256", "tensors",
        "base model", "effect",
    ]  # fmt: skip
    assert {event.status for event in events} == {"ok"}
    assert line(events, "alpha")[1] == "7: scaling 2.333 (alpha/r)"
    assert line(events, "trainable parameters")[1] == "1,248 (6.73% of the base model's 18,552)"
    assert line(events, "size")[1] == f"{(stage2[1] / WEIGHTS).stat().st_size:,} bytes, float32"


def test_the_stage_records_the_hash_that_the_loaded_adapter_has(stage2: Stage2, tmp_path: Path):
    context = build_context(tmp_path / "run", *stage2)
    _, result = run_stage(stage.run(context))
    policy = load_policy(load_base(context.config), stage2[1])
    assert result.facts["tensors_sha256"] == hash_tensors(adapter_tensors(policy, "default"))
    assert result.facts["effect"] > 0
    assert (result.facts["rank"], result.facts["alpha"]) == (3, 7)
    assert result.facts["trainable_parameters"] == 1248
    json.dumps(result.facts, allow_nan=False)


def test_the_hash_depends_on_the_numbers_not_on_their_format(stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    context = build_context(tmp_path / "run", stage2[0], folder)
    policy = load_policy(load_base(context.config), folder)
    assert hash_tensors(load_weights(folder).tensors) == hash_tensors(adapter_tensors(policy, "default"))


def test_another_alpha_in_the_configuration_makes_the_stage_stale(stage2: Stage2, tmp_path: Path):
    """The weights are the same, but not their effect."""
    folder = copy_of(stage2[1], tmp_path)
    context = build_context(tmp_path / "run", stage2[0], folder)
    before = stage.evidence(context)
    settings(lora_alpha=70)(folder)
    assert stage.evidence(context) != before


def test_target_modules_of_a_pattern_are_reported_by_their_names(stage2: Stage2, tmp_path: Path):
    adapter = build_adapter(tmp_path / "adapter", stage2[0], target_modules=r".*\.(q|v)_proj")
    events, result = run_stage(stage.run(build_context(tmp_path / "run", stage2[0], adapter)))
    assert line(events, "target modules") == ("ok", "q_proj, v_proj")
    assert result.facts["target_modules"] == ("q_proj", "v_proj")  # what the forecast of memory reads


# -- nearly good: accepted with a warning ------------------------------------------------------------------------------


def test_a_trainers_pickles_are_reported_and_never_opened(stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    (folder / "training_args.bin").write_bytes(b"not even a pickle")
    (folder / "rng_state\x1b[2J.pth").write_bytes(b"")
    events = checks(build_context(tmp_path / "run", stage2[0], folder))
    assert "\x1b" not in "".join(event.name for event in events)
    assert line(events, "training_args.bin")[0] == "warning"


def test_target_modules_that_the_base_does_not_have_are_reported(stage2: Stage2, tmp_path: Path):
    adapter = build_adapter(tmp_path / "adapter", stage2[0], target_modules=["q_proj", "c_attn"])
    status, detail = line(checks(build_context(tmp_path / "run", stage2[0], adapter)), "target modules")
    assert (status, detail) == ("warning", "q_proj; the base model has no c_attn")


def test_modules_whose_lora_b_is_zero_are_counted(stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    each(lambda name, t: (name, torch.zeros_like(t) if "layers.1" in name and "lora_B" in name else t))(folder)
    status, detail = line(checks(build_context(tmp_path / "run", stage2[0], folder)), "tensors")
    assert status == "warning" and "4 lora_B are zero" in detail


def test_a_tokenizer_that_cannot_be_read_is_reported_and_not_used(stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    (folder / "added_tokens.json").write_text("{")
    assert line(checks(build_context(tmp_path / "run", stage2[0], folder)), "added_tokens.json")[0] == "warning"


def test_a_tokenizer_as_large_as_the_bases_own_is_accepted(stage2: Stage2, tmp_path: Path):
    """Gemma 3's tokenizer has one token more than its embedding has rows."""
    base, folder = Path(shutil.copytree(stage2[0], tmp_path / "base")), copy_of(stage2[1], tmp_path)
    tokenizer_of(402)(base)
    tokenizer_of(402)(folder)
    assert line(checks(build_context(tmp_path / "run", base, folder)), "effect")[0] == "ok"
    tokenizer_of(403)(folder)
    with pytest.raises(PreconditionError, match="tokenizer beside the adapter"):
        run_stage(stage.run(build_context(tmp_path / "run2", base, folder)))


def test_fields_of_another_version_of_peft_are_reported_where_they_are_set(stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    settings(use_newest_idea=0.5, use_other_idea=None)(folder)
    status, detail = line(checks(build_context(tmp_path / "run", stage2[0], folder)), "configuration")
    assert status == "warning" and "use_newest_idea = 0.5" in detail and "other" not in detail


@pytest.mark.parametrize(
    ("base", "named", "status"),
    [
        ("google/gemma-2b-it", "google/gemma-2b-it", "ok"),
        ("google/gemma-2b-it", "/home/somebody/models/gemma-2b-it", "ok"),
        ("google/gemma-2b-it", "/root/.cache/hub/models--google--gemma-2b-it/snapshots/1e3a/", "ok"),
        ("google/gemma-2b-it", "google/gemma-2b", "warning"),
        ("google/gemma-2b-it", "meta-llama/Llama-3.2-1B", "warning"),
        ("google/gemma-2b-it", None, "skipped"),
        ("/models/base", "stage3-tui/demo-base", "ok"),
        ("/models/gemma", "google/gemma2", "warning"),
    ],
)
def test_the_name_of_the_base_in_the_configuration_is_evidence(base: str, named: str | None, status: str):
    assert named_base(Stage3Config(base_model_id=base), named)[0] == status


@pytest.mark.parametrize("named", ["meta-llama/Llama-3.2-1B", "/home/somebody/elsewhere", None])
def test_the_base_named_in_the_configuration_never_decides(named: str | None, stage2: Stage2, tmp_path: Path):
    folder = copy_of(stage2[1], tmp_path)
    settings(base_model_name_or_path=named, revision="gone")(folder)
    _, result = run_stage(stage.run(build_context(tmp_path / "run", stage2[0], folder)))
    assert result.facts["effect"] > 0
    assert result.facts["named_base"] == named


def test_links_within_the_folder_and_of_the_hubs_cache_are_followed(stage2: Stage2, tmp_path: Path):
    snapshot = Path(shutil.copytree(stage2[1], tmp_path / "models--a--b/snapshots/0123"))
    (tmp_path / "models--a--b/blobs").mkdir()
    (snapshot / WEIGHTS).rename(tmp_path / "models--a--b/blobs/feed")
    (snapshot / WEIGHTS).symlink_to("../../blobs/feed")
    (snapshot / CONFIG).rename(snapshot / "settings.json")
    (snapshot / CONFIG).symlink_to("settings.json")
    assert line(checks(build_context(tmp_path / "run", stage2[0], snapshot)), "tensors")[0] == "ok"


# -- loaded ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D11")
def test_an_adapter_without_effect_is_refused(stage2: Stage2, tmp_path: Path):
    context = build_context(tmp_path / "run", *stage2)
    policy = load_policy(load_base(context.config), stage2[1])
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    with pytest.raises(PreconditionError, match="changes the logits by 0"):
        effect_on_logits(policy, load_tokenizer(context.config))


def test_a_base_that_changes_when_the_adapter_is_loaded_is_detected(stage2: Stage2, tmp_path: Path):
    """As with PiSSA: PEFT subtracts the initial values from the base model's weights again, while hash and effect are right."""
    adapter = build_adapter(tmp_path / "pissa", stage2[0], init_lora_weights="pissa")
    context = build_context(tmp_path / "run", stage2[0], adapter)
    base, tokenizer = load_base(context.config), load_tokenizer(context.config)
    before = logits_of(base, tokenizer)
    policy = load_policy(base, adapter)
    assert refuse_rounded(policy, hash_tensors(load_weights(adapter).tensors)) == ""
    assert effect_on_logits(policy, tokenizer) > 0
    with pytest.raises(PreconditionError, match="base model's logits differ by up to"):
        effect_on_logits(policy, tokenizer, before)


def test_tensors_that_peft_would_write_into_the_base_are_refused(stage2: Stage2, tmp_path: Path):
    """The error for an included embedding, which PEFT would silently use instead of the base model's."""
    folder = copy_of(stage2[1], tmp_path)
    added(**{"base_model.model.model.embed_tokens.weight": torch.full((400, 24), 0.25)})(folder)
    context = build_context(tmp_path / "run", stage2[0], folder)
    policy = load_policy(load_base(context.config), folder)
    assert bool((policy.get_input_embeddings().weight == 0.25).all())
    with pytest.raises(PreconditionError, match="contains the base model's own"):
        run_stage(stage.run(context))


def test_whole_modules_in_16_bits_are_reported_and_rounded_ones_refused(stage2: Stage2, tmp_path: Path):
    adapter = build_adapter(tmp_path / "whole", stage2[0], modules_to_save=["lm_head"])
    with pytest.raises(PreconditionError, match="and rounds them") as refused:
        run_stage(stage.run(build_context(tmp_path / "run", stage2[0], adapter, dtype="bfloat16")))
    assert "--dtype float32" in refused.value.what_to_do
    half = build_adapter(tmp_path / "half", stage2[0], modules_to_save=["lm_head"], dtype=torch.bfloat16)
    events = checks(build_context(tmp_path / "run2", stage2[0], half, dtype="bfloat16"))
    assert line(events, "number format")[0] == "warning"
    half = build_adapter(tmp_path / "float16", stage2[0], modules_to_save=["lm_head"], dtype=torch.float16)
    with pytest.raises(PreconditionError, match="cannot be trained in float16"):
        run_stage(stage.run(build_context(tmp_path / "run3", stage2[0], half, dtype="float16")))


# -- the base, and where the adapter is --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_base_that_cannot_be_read_is_reported(name: str, stage2: Stage2, tmp_path: Path):
    base = Path(shutil.copytree(stage2[0], tmp_path / "base"))
    os.truncate(base / name, 7)
    with pytest.raises(PreconditionError, match=r"Cannot read the base model"):
        run_stage(stage.run(build_context(tmp_path / "run", base, stage2[1])))


def test_a_base_with_custom_code_is_refused(stage2: Stage2, tmp_path: Path):
    base = Path(shutil.copytree(stage2[0], tmp_path / "base"))
    facts = json.loads((base / "config.json").read_text())
    facts |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (base / "config.json").write_text(json.dumps(facts))
    (base / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsafeError, match="needs custom code"):
        run_stage(stage.run(build_context(tmp_path / "run", base, stage2[1])))


def test_the_adapter_is_searched_for_here_then_in_the_workspace(stage2: Stage2, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    context = build_context(tmp_path / "run", stage2[0], stage2[1], adapter_path="lora/stage2")
    context.run.record_stage("workspace", status="done", result={"folder": str(tmp_path / "clone")})
    shutil.copytree(stage2[1], tmp_path / "clone/lora/stage2")
    assert adapter_folder(context.config, context.run, None) == tmp_path / "clone/lora/stage2"
    shutil.copytree(stage2[1], tmp_path / "lora/stage2")
    assert adapter_folder(context.config, context.run, None) == tmp_path / "lora/stage2"


@pytest.mark.fault("G1")
def test_text_from_the_adapters_files_cannot_control_a_terminal(stage2: Stage2, tmp_path: Path):
    esc = "\x1b]52;c;x\x07\u202e"
    folder = copy_of(stage2[1], tmp_path)
    settings(base_model_name_or_path=esc, future=esc, target_modules=["q_proj", f"x{esc}"])(folder)
    each(lambda name, t: (name + esc, t))(folder)
    reported: list[Check] = []
    with pytest.raises(Stage3Error) as refused:
        for event in stage.run(build_context(tmp_path / "run", stage2[0], folder)):
            reported.append(event)
    shown = "".join([*(event.name + event.detail for event in reported), str(refused.value)])
    assert "52;c;x" in shown
    assert not set("\x1b\x07\u202e") & set(shown)


def test_a_file_in_place_of_the_folder_is_reported(stage2: Stage2, tmp_path: Path):
    context = build_context(tmp_path / "run", stage2[0], stage2[1], adapter_path=str(stage2[1] / WEIGHTS))
    with pytest.raises(PreconditionError, match="is a file, but an adapter is a folder"):
        adapter_source(context.config, context.run, None)


def test_the_tiny_base_matches_these_numbers(tmp_path: Path):
    facts = json.loads((build_base(tmp_path / "base") / "config.json").read_text())
    assert (facts["vocab_size"], facts["hidden_size"], facts["num_hidden_layers"]) == (400, 24, 2)
