"""The whole program as a newcomer sees it: `stage3-tui --auto --demo` in its own process, and its results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest

from engine.core import layout
from engine.core.events import RunStarted, TrainStep
from engine.core.stage_table import STAGES
from engine.run.journal import read_entries
from engine.run.state import fold
from tests.support.finished_demo import Demo
from tests.support.pseudo_terminal import WIZARD, PseudoTerminal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(demo_run: Demo) -> Path:
    return demo_run.folder


@pytest.mark.fault("D23")
def test_no_library_writes_to_the_terminal(demo_run: Demo):
    """Their warnings are in the log."""
    assert demo_run.errors == b""
    assert all("kind" in json.loads(line) for line in demo_run.output.splitlines())


@pytest.mark.fault("D22")
def test_all_ten_stages_pass_and_the_verdict_is_better(finished: Path):
    state = fold(read_entries(finished / layout.EVENTS_JSONL))
    outcomes = {name: stage.status for name, stage in state.stages.items()}
    assert outcomes == {name: "skipped" if name == "credentials" else "done" for name in STAGES}
    assert state.evaluation is not None and state.evaluation.verdict == "better"
    assert state.finished is not None and state.finished.exit_code == 0


def test_training_began_at_ln_2_and_the_margin_grew(finished: Path):
    steps = fold(read_entries(finished / layout.EVENTS_JSONL)).train_steps
    assert abs(steps[0].loss - 0.693147) < 1e-4
    assert steps[-1].margin > 0.1 > steps[0].margin
    assert [step.step for step in steps] == list(range(1, steps[-1].total_steps + 1))


def test_the_run_folder_has_the_documented_files(finished: Path):
    for name in (
        layout.RUN_JSON, layout.PAIRS_JSONL, layout.PAIRS_REPORT, layout.TRAIN_JSONL, layout.EVAL_JSONL, layout.EVENTS_JSONL,
        layout.RUN_LOG, layout.EVALUATION_REPORT, layout.METRICS_JSON, "models/lora_adapters/adapter_model.safetensors",
        "models/lora_adapters/adapter_config.json", "models/lora_adapters/README.md",
        "models/lora_adapters/tokenizer_config.json",
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    assert sorted(path.name for path in (finished / "preflight").iterdir()) == [
        "pairs.jsonl",
        "plan.json",
        "report.json",
    ]
    assert not list(finished.rglob("*.bin"))


def test_the_training_set_loads_with_plain_datasets(finished: Path):
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(finished / layout.TRAIN_JSONL), split="train")
    assert set(rows.column_names) == {"prompt", "chosen", "rejected"}
    assert rows[0]["chosen"][0]["role"] == "assistant" != rows[0]["prompt"][-1]["role"]
    held_out = load_dataset("json", data_files=str(finished / layout.EVAL_JSONL), split="train")
    assert {str(row["prompt"]) for row in rows}.isdisjoint({str(row["prompt"]) for row in held_out})


def test_the_archive_can_be_unpacked_and_loaded_with_plain_peft(finished: Path, tmp_path: Path):
    archive = finished.with_name("stage3_artifacts.zip")
    digest, name = archive.with_name(archive.name + ".sha256").read_text().split()
    assert (len(digest), name.lstrip("*")) == (64, archive.name)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    adapter = tmp_path / "stage3" / "models" / "lora_adapters"
    assert largest_effect(ROOT / "engine/demo/assets/base", adapter) > 0.1


def largest_effect(base: Path, adapter: Path) -> float:
    """The largest change that the adapter makes to a logit, with PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    chat = [{"role": "user", "content": "How do I clean the oven?"}]
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        with_adapter = model(**ids).logits
        with model.disable_adapter():
            without = model(**ids).logits
    return float((with_adapter - without).abs().max())


@pytest.mark.slow
def test_a_terminal_that_stops_reading_for_five_seconds_does_not_slow_training(finished: Path, tmp_path: Path):
    folder = tmp_path / "stage3"
    shutil.copytree(finished, folder)
    epochs = ("--num-train-epochs", "300")
    terminal = PseudoTerminal([*WIZARD, "--demo", "--output-dir", str(folder), *epochs], columns=200, rows=50)
    try:
        terminal.wait_for("Packaging")
        terminal.press("a")
        terminal.wait_for("What a start would do")
        terminal.press("\r")
        terminal.until(lambda: len(step_times(folder)) > 20, "twenty steps", 120)
        terminal.wait_for("Reward margin")
        read_from = time.time()
        terminal.rest(4)
        stalled_from = time.time()
        time.sleep(5)
        stalled_to = time.time()
        times = step_times(folder)
        read = sum(read_from < when <= stalled_from for when in times) / (stalled_from - read_from)
        stalled = sum(stalled_from < when <= stalled_to for when in times) / (stalled_to - stalled_from)
        # If the engine waited for the screen, there would be none at all; half leaves room for a busy machine.
        assert read > 0 and stalled > read / 2, (
            f"{read:.1f} steps a second while it read, {stalled:.1f} while it did not"
        )
        newest = len(times)
        terminal.until(lambda: newest <= step_on_screen(terminal.text), "the newest step on the screen")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.end(60) == 143
    finally:
        terminal.kill()


def step_times(folder: Path) -> list[float]:
    """The times of the steps of the last start, as reported."""
    entries = list(read_entries(folder / layout.EVENTS_JSONL))
    last_start = max(index for index, entry in enumerate(entries) if isinstance(entry.event, RunStarted))
    return [entry.time for entry in entries[last_start:] if isinstance(entry.event, TrainStep)]


def step_on_screen(text: str) -> int:
    found = re.search(r"step ([\d,]+) /", text)
    return int(found[1].replace(",", "")) if found else 0
