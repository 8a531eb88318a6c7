"""Disk space, estimated before any download: what counts, on which disk, and the error."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from engine.core.errors import PreconditionError
from engine.core.events import Check
from engine.dpo.planning import disk_space
from engine.dpo.planning.disk_space import (
    ADAPTER_NUMBERS,
    RESERVE,
    DiskNeed,
    disk_needs,
    model_bytes,
    require_disk_space,
)
from engine.dpo.planning.forecast import disk_parts
from tests.conftest import run_stage
from tests.support.git_repositories import context

GIB = 1 << 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache on the same disk as the run."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def needed(tmp_path: Path, **options: Any) -> list[DiskNeed]:
    run_context = context(tmp_path, **options)
    return disk_needs(run_context.config, run_context.run)


def parts(tmp_path: Path, **options: Any) -> dict[str, int]:
    return {name: size for need in needed(tmp_path, **options) for name, size in need.parts.items()}


def free(monkeypatch: pytest.MonkeyPatch, **by_name: int) -> None:
    """Set the free bytes by folder name; 1 TiB elsewhere."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, by_name.get(Path(path).name, 1 << 40)))


def check(tmp_path: Path, **options: Any) -> tuple[list[Check], int]:
    run_context = context(tmp_path, **options)
    return run_stage(require_disk_space(run_context.config, run_context.run))


def test_a_run_of_local_models_downloads_nothing(tmp_path: Path) -> None:
    assert set(parts(tmp_path)) == {"pairs", "checkpoints", "archive", "reserve"}


def test_a_run_from_the_hub_downloads_model_and_dataset(tmp_path: Path) -> None:
    sizes = parts(tmp_path, base_model_id="google/gemma-2b-it", dataset="Anthropic/hh-rlhf")
    assert sizes["base model"] == 5_000_000_000 and sizes["dataset"] == 500 << 20
    assert parts(tmp_path, judge="reward-model", reward_model_id="owner/judge-400m")["reward model"] == 1_000_000_000


@pytest.mark.parametrize(
    ("repo_id", "size"),
    [
        ("google/gemma-2b-it", 5_000_000_000),
        ("google/gemma-7b-it", 17_500_000_000),
        ("meta-llama/Llama-3.1-8B-Instruct", 20_000_000_000),
        ("Qwen/Qwen2-0.5B-Instruct", 1_250_000_000),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 140_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 337_500_000),
        ("owner/no-number", 5 * GIB),
        ("2b/no-number", 5 * GIB),
        ("owner/gpt2big", 5 * GIB),
    ],
)
def test_the_size_of_a_model_is_in_its_name(repo_id: str, size: int) -> None:
    assert model_bytes(repo_id) == size


@pytest.mark.parametrize(
    ("name", "true_bytes"),
    # safetensors of these repositories, in 16 bits: parameters as their model cards give them, times 2
    [("google/gemma-2b-it", 2 * 2.506e9), ("google/gemma-7b-it", 2 * 8.538e9), ("meta-llama/Llama-3.1-8B", 2 * 8.03e9),
     ("Qwen/Qwen2.5-7B", 2 * 7.616e9), ("Qwen/Qwen2-0.5B", 2 * 0.494e9), ("google/gemma-3-4b-it", 2 * 4.3e9)],
)  # fmt: skip
def test_the_estimate_of_a_model_is_about_right(name: str, true_bytes: float) -> None:
    assert 0.99 * true_bytes < model_bytes(name) < 1.35 * true_bytes


def test_what_is_in_the_cache_is_not_downloaded_again_but_a_part_of_a_file_is(tmp_path: Path, cache: Path) -> None:
    blobs = cache / "models--google--gemma-2b-it/blobs"
    blobs.mkdir(parents=True)
    with (blobs / "abc").open("wb") as file:
        file.truncate(4_000_000_000)
    with (blobs / "def.incomplete").open("wb") as file:
        file.truncate(900_000_000)
    assert parts(tmp_path, base_model_id="google/gemma-2b-it")["base model"] == 1_000_000_000


def test_pairs_grow_with_their_number_their_length_and_their_rounds(tmp_path: Path) -> None:
    def pairs(**options: Any) -> int:
        return parts(tmp_path, num_examples=1000, max_new_tokens=100, max_prompt_tokens=50, **options)["pairs"]

    # two copies of a record of 3 texts and twice the prompt, 4 bytes a token
    assert pairs() == 1000 * 2 * 4 * (3 * 100 + 2 * 50)
    assert pairs(rounds=2) == 1000 * 2 * 4 * (5 * 100 + 2 * 50)


def test_checkpoints_follow_from_the_adapter_that_is_here(
    tmp_path: Path, stage2: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    numbers = sum(tensor.numel() for tensor in load_file(stage2[1] / "adapter_model.safetensors").values())
    here = parts(tmp_path, adapter_path=str(stage2[1]), save_total_limit=3)
    assert here["checkpoints"] == 3 * 4 * numbers * (3 + 1)
    assert here["archive"] == 3 * 4 * numbers * 2
    elsewhere = parts(tmp_path, adapter_path=str(tmp_path / "nowhere"), save_total_limit=3)
    assert elsewhere["checkpoints"] == 3 * 4 * ADAPTER_NUMBERS * (3 + 1)


def test_a_damaged_adapter_is_for_a_later_stage_to_refuse(tmp_path: Path) -> None:
    for damage in (
        b"",
        b"\xff" * 100,
        (4).to_bytes(8, "little") + b"[{}]",
        (13).to_bytes(8, "little") + b'{"a": {"b":1}',
    ):
        (tmp_path / "adapter_model.safetensors").write_bytes(damage)
        assert parts(tmp_path, adapter_path=str(tmp_path))["archive"] == 3 * 4 * ADAPTER_NUMBERS * 2


def test_the_formula_is_that_of_the_forecast(tmp_path: Path) -> None:
    options = {"num_examples": 7, "save_total_limit": 2}
    run_context = context(tmp_path, **options)
    record = 4 * (3 * run_context.config.max_new_tokens + 2 * run_context.config.max_prompt_tokens)
    formula = disk_parts(record_bytes=record, checkpoint_bytes=3 * 4 * ADAPTER_NUMBERS, **options)
    assert parts(tmp_path, **options) == {**formula, "reserve": RESERVE}


def test_a_run_that_continues_needs_space_only_for_the_rest(tmp_path: Path) -> None:
    total = needed(tmp_path)[0].bytes
    (tmp_path / "run/checkpoints/checkpoint-5").mkdir(parents=True)
    with (tmp_path / "run/checkpoints/checkpoint-5/optimizer.pt").open("wb") as file:
        file.truncate(300_000_000)
    (tmp_path / "run/superseded").mkdir()
    with (tmp_path / "run/superseded/old").open("wb") as file:  # does not count: it is never overwritten
        file.truncate(100_000_000)
    assert abs(needed(tmp_path)[0].bytes - (total - 300_000_000)) < 10  # up to rounding
    with (tmp_path / "run_artifacts.zip").open("wb") as file:
        file.truncate(1 << 40)
    assert needed(tmp_path)[0].bytes == RESERVE


def test_the_check_lists_free_and_needed_space_by_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch)
    (line,), _ = check(tmp_path, base_model_id="google/gemma-2b-it")
    assert (line.name, line.status) == ("free disk", "ok")
    assert line.detail.startswith(f"1024.0 GiB at {tmp_path}; about 6.")
    for part in ("base model 4.7 GiB", "pairs 68 MiB", "checkpoints 687 MiB", "archive 458 MiB", "reserve 200 MiB"):
        assert part in line.detail
    assert line.detail.endswith("; preflight measures precisely")


@pytest.mark.fault("B4")
def test_too_little_disk_space_is_an_error_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, **{tmp_path.name: 2 * GIB})
    (line,), least = check(tmp_path)
    assert line.status == "ok" and least == 2 * GIB
    with pytest.raises(
        PreconditionError, match=r"has 2\.0 GiB free, but the files of the run and downloads need about 6\.0 GiB"
    ) as error:
        check(tmp_path, base_model_id="google/gemma-2b-it")
    assert error.value.exit_code == 3 and "base model 4.7 GiB" in error.value.why
    assert "--output-dir" in error.value.what_to_do and "HF_HOME" in error.value.what_to_do


@pytest.mark.fault("B4")
def test_the_run_and_the_downloads_are_compared_with_their_own_disks(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "disk_of", lambda path: path.name)
    free(monkeypatch, **{tmp_path.name: 2 * GIB, "cache": 6 * GIB})
    lines, least = check(tmp_path, base_model_id="google/gemma-2b-it")
    assert [line.name for line in lines] == ["free disk", "free disk, downloads"] and least == 2 * GIB
    free(monkeypatch, **{tmp_path.name: 2 * GIB, "cache": 4 * GIB})
    with pytest.raises(PreconditionError, match=r"cache has 4\.0 GiB free, but downloads need about 4\.7 GiB"):
        check(tmp_path, base_model_id="google/gemma-2b-it")


def test_without_disk_space_nothing_is_cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.git_repositories import drive, make_upstream, names_in

    upstream, here = make_upstream(tmp_path / "upstream"), tmp_path / "here"
    here.mkdir()
    free(monkeypatch, **{tmp_path.name: 1000})
    with pytest.raises(PreconditionError, match="1000 bytes free"):
        drive(context(tmp_path, repo_url=str(upstream), repo_root=here / "clone"))
    assert names_in(here) == set()
