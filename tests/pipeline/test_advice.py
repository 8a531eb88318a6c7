"""Following an error's advice loses no earlier work: each piece of advice is followed here, on the demo's model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core import layout
from engine.core.errors import ExitCode
from engine.dpo.training import trl_trainer
from engine.stages import pairs as stage_pairs
from tests.support.short_demo import Ran, run, short_demo
from tests.support.short_run import copy_of

UNTIL_PAIRS = ("adapter", "preflight", "pairs")
FULL = "CUDA out of memory. Tried to allocate 1.95 GiB."
BATCH, SMALLER = 8, 2
OPTIONS: dict[str, Any] = {
    "generation_batch_size": BATCH,
    "max_length": 200,
    "pilot_prompts": 0,  # else preflight makes most of them
    "gradient_checkpointing": False,
    "cpu_ref_model": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
}


def records(folder: Path) -> list[str]:
    return (folder / layout.PAIRS_JSONL).read_text().splitlines()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run before its pairs."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert run(short_demo(folder, **OPTIONS), UNTIL_PAIRS[:-1]).code is ExitCode.DONE
    return folder


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a machine with enough memory."""
    folder = copy_of(begun, tmp_path_factory.mktemp("whole") / "run")
    assert run(short_demo(folder, **OPTIONS)).code is ExitCode.DONE
    return folder


# -- in stage pairs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The records of each batch, on a device with room for one batch of BATCH and then only SMALLER."""
    real = stage_pairs.record_maker
    sizes: list[int] = []

    def record_maker(*args: Any) -> Any:
        make = real(*args)

        def small(batch: Any) -> Any:
            if sizes and len(batch) > SMALLER:
                raise torch.OutOfMemoryError(FULL)
            sizes.append(len(batch))
            return make(batch)

        return small

    monkeypatch.setattr(stage_pairs, "record_maker", record_maker)
    return sizes


def test_memory_runs_out_in_pairs_and_with_the_smaller_batch_that_is_advised_no_record_is_made_again(
    made: list[int], begun: Path, tmp_path: Path
):
    folder = copy_of(begun, tmp_path / "run")
    first = run(short_demo(folder, **OPTIONS), UNTIL_PAIRS)
    assert first.code is ExitCode.MEMORY and first.failure.stage == "pairs"
    assert "--generation-batch-size" in first.failure.what_to_do
    before = records(folder)
    assert len(before) == BATCH

    second = run(short_demo(folder, **{**OPTIONS, "generation_batch_size": SMALLER}), UNTIL_PAIRS)
    assert second.code is ExitCode.DONE
    assert records(folder)[: len(before)] == before
    assert len(second.records) == 28 - len(before) == sum(made[1:])
    assert not list((folder / layout.SUPERSEDED_DIR).glob("*/pairs"))


# -- in stage training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spent(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A run whose training ran out of memory after its second step, with no smaller plan left."""
    folder = copy_of(whole, tmp_path_factory.mktemp("spent") / "run")
    with pytest.MonkeyPatch.context() as patch:
        real = trl_trainer.Stage3Trainer.compute_loss

        def spent(self: Any, *args: Any, **more: Any) -> Any:
            if self.state.global_step >= 2:
                raise torch.OutOfMemoryError(FULL)
            return real(self, *args, **more)

        patch.setattr(trl_trainer.Stage3Trainer, "compute_loss", spent)
        shutil.rmtree(folder / layout.CHECKPOINTS_DIR)
        manifest = json.loads((folder / layout.RUN_JSON).read_text())
        del manifest["stages"]["training"]
        (folder / layout.RUN_JSON).write_text(json.dumps(manifest))
        ran = run(short_demo(folder, **OPTIONS))
    return folder, ran


GOES_ON, BEGINS_ANEW = 3, 1
ADVICE = {
    "--gradient-checkpointing": ({"gradient_checkpointing": True}, GOES_ON),
    "--cpu-ref-model": ({"cpu_ref_model": True}, GOES_ON),
    "--max-length 100 (now 200)": ({"max_length": 100}, BEGINS_ANEW),
}
"""The advice, the options that follow it, and the first optimizer step that is then done."""


def test_the_advice_after_memory_runs_out_is_what_this_test_follows(spent: tuple[Path, Ran]):
    _, ran = spent
    assert ran.code is ExitCode.MEMORY and ran.steps == [1, 2]
    assert all(advice in ran.failure.what_to_do for advice in ADVICE)


@pytest.mark.parametrize(
    "advice", [pytest.param(advice, marks=[pytest.mark.slow] * (advice == "--cpu-ref-model")) for advice in ADVICE]
)
def test_memory_runs_out_in_the_training_and_after_each_advice_pairs_scores_and_steps_stay(
    advice: str, spent: tuple[Path, Ran], tmp_path: Path
):
    folder = copy_of(spent[0], tmp_path / "run")
    kept = (layout.PAIRS_JSONL, layout.SCORES_JSONL, layout.TRAIN_JSONL, layout.EVAL_JSONL)
    before = {name: (folder / name).read_bytes() for name in kept}
    changed, first_step = ADVICE[advice]
    ran = run(short_demo(folder, **{**OPTIONS, **changed}))
    assert ran.code is ExitCode.DONE
    assert {"pairs", "quality"} <= ran.reused and ran.records == []
    assert ran.steps[0] == first_step and ran.steps[-1] == 3
    assert {name: (folder / name).read_bytes() for name in kept} == before
