"""Runs that are killed while they apply a change, and started again: they end with the bytes of an undisturbed run, and
nothing is trained twice.

The short tests abandon the pipeline within this process, where a kill would; the slow ones send SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import ExitCode
from engine.core.events import Event, PairMade, TrainStep, TrialFinished, TrialStep
from engine.pipeline import sweep
from engine.pipeline.loop import run_stages
from engine.pipeline.trials import trials_from_grid
from engine.run.context import Context
from engine.run.folder import Run
from tests.support.short_demo import run, short_demo
from tests.support.short_run import copy_of

ROOT = Path(__file__).parents[2]
STAGES = ("adapter", "pairs", "quality", "training")
OUTPUTS = (
    layout.PAIRS_JSONL,
    layout.SCORES_JSONL,
    layout.TRAIN_JSONL,
    f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}",
)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def abandon(events: Iterator[Event], matches: Callable[[Event], bool], count: int) -> None:
    """Abandon a run at the given number of matching events: what is not on disk by then is lost."""
    left = count
    for event in events:
        left -= matches(event)
        if not left:
            break
    assert not left, "it ended before it could be killed"
    events.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 28 prompts, trained."""
    folder = tmp_path_factory.mktemp("first_run") / "run"
    assert run(short_demo(folder), STAGES).code is ExitCode.DONE
    return folder


def test_adding_examples_with_kills_in_pairs_and_training_ends_with_the_same_bytes(first_run: Path, tmp_path: Path):
    undisturbed, killed = copy_of(first_run, tmp_path / "undisturbed"), copy_of(first_run, tmp_path / "killed")
    expected = run(short_demo(undisturbed, num_examples=36), STAGES)
    assert expected.code is ExitCode.DONE and expected.most_done("pairs", "pairs") == 36

    def start() -> Context:
        return short_demo(killed, num_examples=36)

    abandon(run_stages(start(), STAGES), lambda event: isinstance(event, PairMade), 3)
    abandon(run_stages(start(), STAGES), lambda event: isinstance(event, TrainStep), 2)
    again = run(start(), STAGES)
    assert again.code is ExitCode.DONE and "pairs" in again.reused and again.steps[0] > 1
    assert outputs(killed) == outputs(undisturbed)
    assert (killed / layout.PAIRS_JSONL).read_bytes().startswith((first_run / layout.PAIRS_JSONL).read_bytes())


TRIALS = trials_from_grid({"beta": [0.1, 0.5]})
HALVES: dict[str, Any] = {"min_eval_pairs": 8}
FIGURES = ("reward_accuracy", "margin", "score_change")


def test_a_sweep_killed_in_a_trial_continues_and_its_figures_match_those_of_a_separate_run(
    first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweep, "BEFORE_TRAINING", STAGES[:-1])
    folder, separate = copy_of(first_run, tmp_path / "sweep"), copy_of(first_run, tmp_path / "separate")

    def start() -> Iterator[Event]:
        return sweep.run_sweep(short_demo(folder, **HALVES), TRIALS)

    abandon(start(), lambda event: isinstance(event, TrialStep) and event.trial == TRIALS[1].name, 2)
    events = list(start())
    assert [event.reused for event in events if isinstance(event, TrialFinished)] == [True, False]
    assert {event.trial for event in events if isinstance(event, TrialStep)} <= {TRIALS[1].name}
    finished = run(short_demo(separate, **HALVES, beta=0.5, eval_part="first"), STAGES)
    assert finished.code is ExitCode.DONE and finished.steps[0] == 1
    check_table(folder, TRIALS[1].name, separate)


def check_table(sweep_folder: Path, trial: str, separate: Path) -> None:
    """Three figures and the loss are the same in the sweep's table and in the report of a separate run."""
    table = json.loads((sweep_folder / layout.SWEEP_REPORT).read_text())
    row = next(row for row in table["trials"] if row["name"] == trial)
    figures = json.loads((separate / layout.EVALUATION_REPORT).read_text())["figures"]
    assert {name: row["figures"][name] for name in FIGURES} == {name: figures[name] for name in FIGURES}
    assert row["final_loss"] == json.loads((separate / layout.METRICS_JSON).read_text())["train"]["final_loss"]
    weights = f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}"
    assert (sweep_folder / layout.TRIALS_DIR / trial / weights).read_bytes() == (separate / weights).read_bytes()


# -- with SIGKILL ------------------------------------------------------------------------------------------------------


def stage3(folder: Path, *arguments: str, kill_at: tuple[str, int] | None = None) -> list[dict[str, Any]]:
    """Run the program on the demo, and kill it at the N-th event of a kind if `kill_at` says so. Returns its events."""
    command = [sys.executable, "-m", "tui.cli", *arguments, "--demo", "--json", "--output-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        events, left = [], None if kill_at is None else kill_at[1]
        for line in process.stdout:
            if not line.endswith("}\n"):
                continue
            events.append(json.loads(line))
            if left is not None and kill_at is not None and events[-1]["kind"] == kill_at[0]:
                left -= 1
                if not left:
                    process.send_signal(signal.SIGKILL)
                    break
    assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)
    time.sleep(0.1)
    return events


@pytest.mark.slow
def test_going_from_160_to_500_prompts_with_three_kills_makes_340_pairs_with_the_same_bytes(tmp_path: Path):
    first_run = tmp_path / "first_run"
    stage3(first_run, "--auto")
    undisturbed, killed = copy_of(first_run, tmp_path / "undisturbed"), copy_of(first_run, tmp_path / "killed")
    events = stage3(undisturbed, "--auto", "--num-examples", "500")
    assert sum(event["kind"] == "pair_made" for event in events) == 340
    for kind, count in (("pair_made", 90), ("pair_made", 130), ("train_step", 25)):
        stage3(killed, "--auto", "--num-examples", "500", kill_at=(kind, count))
    stage3(killed, "--auto", "--num-examples", "500")
    assert outputs(killed) == outputs(undisturbed)


@pytest.mark.slow
def test_the_table_of_a_sweep_that_was_killed_twice_matches_separate_runs(tmp_path: Path):
    folder, grid = tmp_path / "sweep", ("sweep", "--beta", "0.1,0.5", "--learning-rate", "1e-3,2e-3")
    stage3(folder, *grid, kill_at=("trial_step", 20))
    stage3(folder, *grid, kill_at=("trial_step", 70))
    events = stage3(folder, *grid)
    assert sum(event["kind"] == "trial_finished" for event in events) == 4
    halves = ("--min-eval-pairs", "40", "--eval-fraction", "0.2", "--eval-part", "first")
    for beta, rate in (("0.1", "1e-3"), ("0.5", "2e-3")):
        separate = tmp_path / f"separate-{beta}"
        stage3(separate, "--auto", "--until", "training", "--beta", beta, "--learning-rate", rate, *halves)
        check_table(folder, f"beta-{beta}_learning-rate-{float(rate):g}", separate)
    assert Run(folder).stage("training") == {}
