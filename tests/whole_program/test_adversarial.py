"""Runs that must fail do so properly: with the right exit code, what and why, and without losing good results.

Each goes through the pipeline, as with `--auto`, so that what is recorded is what a person would see.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engine.core import layout
from engine.core.errors import ExitCode
from engine.dpo.training import trainer, trl_trainer
from engine.dpo.training.checkpoints import by_step, checkpoint_error
from engine.pairs.data.edits import write_edit
from engine.pipeline import loop
from engine.run.context import Context
from tests.conftest import run_stage
from tests.support import good_pairs
from tests.support.tiny_models import build_context, pairs, write_rows

ROOT = Path(__file__).parents[2]
Make = Callable[..., Context]


@pytest.fixture
def make(stage2: tuple[Path, Path], tmp_path: Path) -> Make:
    """A run over the tiny models, with training and held-out pairs in place."""

    def build(**options: Any) -> Context:
        context = build_context(
            tmp_path / "run", *stage2, **{"eval_harmless_prompts": 2, "relevance": False, **options}
        )
        write_rows(context.run / layout.TRAIN_JSONL, pairs(16))
        write_rows(context.run / layout.EVAL_JSONL, pairs(20)[16:])
        return context

    return build


def outcome(context: Context, monkeypatch: pytest.MonkeyPatch, *stages: str) -> tuple[ExitCode, str]:
    """Run these stages; returns the exit code and the three sentences of the error in run.json."""
    monkeypatch.setattr(loop, "STAGES", stages)
    _, code = run_stage(loop.run_pipeline(context, until=stages[-1]))
    error = json.loads((context.run / layout.RUN_JSON).read_text())["error"]
    if not error:
        return code, ""
    assert error["exit_code"] == code and error["what_to_do"]
    return code, f"{error['what']} {error['why']} {error['what_to_do']}"


def test_the_same_run_succeeds_if_nothing_is_wrong(make: Make, monkeypatch: pytest.MonkeyPatch):
    assert outcome(make(), monkeypatch, "adapter", "training") == (ExitCode.DONE, "")


# -- the pairs ---------------------------------------------------------------------------------------------------------


def with_pairs(context: Context, rows: list[dict[str, Any]]) -> Context:
    (context.run / layout.PAIRS_JSONL).parent.mkdir(parents=True, exist_ok=True)
    good_pairs.write_rows(context.run / layout.PAIRS_JSONL, rows)
    return context


def identical(number: int) -> dict[str, Any]:
    text = f"Kick thing {number} as hard as you possibly can, twice."
    return good_pairs.row(number, base_response=text, revised_response=text)


@pytest.mark.fault("C5")
def test_identical_pairs_are_refused_by_the_gate(make: Make, monkeypatch: pytest.MonkeyPatch):
    context = with_pairs(make(min_pairs=10), [identical(i) for i in range(30)])
    code, error = outcome(context, monkeypatch, "quality", "training")
    assert code == 9
    assert "usable share is 0.0% (at least 50.0%)" in error and "training pairs is 0 (at least 10)" in error


def test_opening_the_gate_for_identical_pairs_leaves_nothing_to_train_on(make: Make, monkeypatch: pytest.MonkeyPatch):
    context = with_pairs(make(min_pairs=10, accept_quality="let me"), [identical(i) for i in range(30)])
    code, error = outcome(context, monkeypatch, "quality", "training")
    assert code == 9 and "Too few usable pairs (0) to split into training and held-out sets" in error


def test_identical_replies_in_a_training_file_are_refused_with_their_line(make: Make, monkeypatch: pytest.MonkeyPatch):
    context = make()
    rows = pairs(16)
    rows[4] = {**rows[4], "rejected": rows[4]["chosen"]}
    write_rows(context.run / layout.TRAIN_JSONL, rows)
    code, error = outcome(context, monkeypatch, "adapter", "training")
    assert code == 9 and "Line 5 of" in error and "Both replies are identical" in error


@pytest.mark.fault("D19")
def test_a_single_pair_is_refused_even_if_the_gate_is_opened(make: Make, monkeypatch: pytest.MonkeyPatch):
    code, error = outcome(with_pairs(make(), [good_pairs.row(0)]), monkeypatch, "quality", "training")
    assert code == 9 and "training pairs is 1 (at least 100)" in error
    opened = with_pairs(make(accept_quality="it is all I have"), [good_pairs.row(0)])
    code, error = outcome(opened, monkeypatch, "quality", "training")
    assert code == 9 and "Too few usable pairs (1) to split into training and held-out sets" in error


@pytest.mark.fault("D18")
def test_the_gate_refuses_swapped_labels_if_the_pairs_have_scores(make: Make, monkeypatch: pytest.MonkeyPatch):
    scored = [good_pairs.row(i, base_score=0.25, revised_score=0.75) for i in range(30)]
    context = with_pairs(make(min_pairs=10, min_eval_pairs=4, accept_quality="nobody judges here"), scored)
    assert outcome(context, monkeypatch, "quality")[0] == ExitCode.DONE
    for row in scored:
        write_edit(context.run / layout.EDITS_JSONL, row["id"], "flip")
    context = with_pairs(make(min_pairs=10, min_eval_pairs=4), scored)
    code, error = outcome(context, monkeypatch, "quality", "training")
    assert code == 9 and "improved share is 0.0% (at least 60.0%)" in error


def test_pairs_that_are_all_too_long_are_listed_with_the_length_they_need(make: Make, monkeypatch: pytest.MonkeyPatch):
    context = make(max_length=16, max_too_long_share=1.0)
    code, error = outcome(context, monkeypatch, "adapter", "training")
    assert code == 9
    assert "16 of 16 pairs (100.0%) exceed --max-length 16: row 0 (" in error and "and 8 more" in error
    assert "Use --max-length " in error
    assert by_step(context.run / layout.CHECKPOINTS_DIR) == []


# -- the adapter and the reference -------------------------------------------------------------------------------------


@pytest.mark.fault("D12")
def test_an_adapter_of_another_base_is_refused_before_anything_is_made(
    make: Make, stage2: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    wider = Path(shutil.copytree(stage2[0], tmp_path / "wider"))
    settings = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps({**settings, "intermediate_size": 56}))
    code, error = outcome(make(base_model_id=str(wider)), monkeypatch, "adapter", "training")
    assert code == 3
    assert "does not fit" in error and "--base-model-id" in error and "--adapter-path" in error


def test_a_fresh_lora_on_the_bare_base_is_not_a_reference(make: Make, monkeypatch: pytest.MonkeyPatch):
    def fresh(base: Any, folder: Path, *, trainable: bool) -> Any:
        return get_peft_model(base, LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]))

    context = make()
    monkeypatch.setattr(trainer, "load_policy", fresh)
    code, error = outcome(context, monkeypatch, "training")
    assert code == 8
    assert "The reference is not the Stage 2 adapter." in error and "Nothing was trained." in error
    recorded = context.run.result("adapter")["tensors_sha256"]
    assert f"stage adapter recorded {recorded}" in error


@pytest.mark.fault("D16")
def test_a_loss_that_compares_with_the_bare_base_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch):
    import trl.trainer.dpo_trainer as dpo

    monkeypatch.setattr(dpo, "use_adapter", lambda model, adapter_name: model.disable_adapter())
    context = make()
    code, error = outcome(context, monkeypatch, "training")
    assert code == 8 and "not ln 2 = 0.693147" in error
    assert by_step(context.run / layout.CHECKPOINTS_DIR) == []


# -- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("D1")
def test_one_nan_in_one_gradient_stops_the_run_and_it_resumes_from_the_last_good_checkpoint(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    training_step, poisoned = trl_trainer.Stage3Trainer.training_step, []

    def poison(self: Any, model: Any, *inputs: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = training_step(self, model, *inputs, **options)
        if self.state.global_step == 2 and not poisoned:
            gradient = next(p.grad for n, p in model.named_parameters() if "lora_B" in n and p.grad is not None)
            gradient[1, 2] = math.nan
            poisoned.append(True)
        return loss

    monkeypatch.setattr(trl_trainer.Stage3Trainer, "training_step", poison)
    context = make()
    code, error = outcome(context, monkeypatch, "training")
    assert code == 8 and "The gradient norm is nan at step 3." in error and "--dtype" in error
    (kept,) = by_step(context.run / layout.CHECKPOINTS_DIR)
    assert kept.name == "checkpoint-2" and not checkpoint_error(
        kept, json.loads((kept / "manifest.json").read_text())["fingerprint"]
    )
    assert not (context.run / layout.ADAPTER_DIR).exists()
    assert outcome(context, monkeypatch, "training") == (ExitCode.DONE, "")  # the gradient is good this time
    assert json.loads((context.run / layout.METRICS_JSON).read_text())["train"]["steps"] == 4


@pytest.mark.fault("D17")
def test_training_that_changes_nothing_is_an_error_unless_the_learning_rate_is_0(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    code, error = outcome(make(learning_rate=1e-30), monkeypatch, "adapter", "training")
    assert code == 8 and "did not change the adapter" in error and "--learning-rate (now 1e-30)" in error
    context = make(learning_rate=0.0)
    assert outcome(context, monkeypatch, "adapter", "training") == (ExitCode.DONE, "")
    assert context.run.result("training")["verdict"] == "no different"


# -- on the command line -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--max-length", "16"), 9, "too long share is 24 of 24"),
        (("--num-examples", "1"), 9, "training pairs is 1 (at least 80)"),
    ],
)
def test_auto_reports_the_error_on_stderr_in_three_lines(
    options: tuple[str, ...], code: int, message: str, tmp_path: Path
):
    command = [sys.executable, "-m", "tui.cli", "--auto", "--demo", "--output-dir", str(tmp_path / "run"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=280)
    assert done.returncode == code, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["failed", "why", "next"]
    assert message in done.stderr and "Traceback" not in done.stderr
