"""Killed in the middle of what is done again, and started again: the same bytes as undisturbed, and no training twice.

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
MADE = (layout.PAIRS_JSONL, layout.SCORES_JSONL, layout.TRAIN_JSONL, f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}")


def made(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in MADE}


def killed(events: Iterator[Event], when: Callable[[Event], bool], times: int) -> None:
    """Go on until that many of these events were told, and no further: what was not on disk by then is lost."""
    left = times
    for event in events:
        left -= when(event)
        if not left:
            break
    assert not left, "it ended before it could be killed"
    events.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 28 prompts, trained."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert run(short_demo(folder), STAGES).code is ExitCode.DONE
    return folder


def test_adding_examples_with_kills_in_pairs_and_training_ends_with_the_same_bytes(begun: Path, tmp_path: Path):
    whole, hurt = copy_of(begun, tmp_path / "whole"), copy_of(begun, tmp_path / "hurt")
    undisturbed = run(short_demo(whole, num_examples=36), STAGES)
    assert undisturbed.code is ExitCode.DONE and undisturbed.most_done("pairs", "pairs") == 36

    def start() -> Context:
        return short_demo(hurt, num_examples=36)

    killed(run_stages(start(), STAGES), lambda event: isinstance(event, PairMade), 3)
    killed(run_stages(start(), STAGES), lambda event: isinstance(event, TrainStep), 2)
    again = run(start(), STAGES)
    assert again.code is ExitCode.DONE and "pairs" in again.reused and again.steps[0] > 1
    assert made(hurt) == made(whole)
    assert (hurt / layout.PAIRS_JSONL).read_bytes().startswith((begun / layout.PAIRS_JSONL).read_bytes())


TRIALS = trials_from_grid({"beta": [0.1, 0.5]})
HALVES: dict[str, Any] = {"min_eval_pairs": 8}
FIGURES = ("reward_accuracy", "margin", "score_change")


def test_a_sweep_killed_in_a_trial_continues_and_its_figures_match_those_of_a_separate_run(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweep, "BEFORE_TRAINING", STAGES[:-1])
    folder, alone = copy_of(begun, tmp_path / "sweep"), copy_of(begun, tmp_path / "alone")

    def start() -> Iterator[Event]:
        return sweep.run_sweep(short_demo(folder, **HALVES), TRIALS)

    killed(start(), lambda event: isinstance(event, TrialStep) and event.trial == TRIALS[1].name, 2)
    events = list(start())
    assert [event.reused for event in events if isinstance(event, TrialFinished)] == [True, False]
    assert {event.trial for event in events if isinstance(event, TrialStep)} <= {TRIALS[1].name}
    own = run(short_demo(alone, **HALVES, beta=0.5, eval_part="first"), STAGES)
    assert own.code is ExitCode.DONE and own.steps[0] == 1
    check_table(folder, TRIALS[1].name, alone)


def check_table(sweep_folder: Path, trial: str, alone: Path) -> None:
    """Three figures and the loss, in the sweep's table and in the report of a run of its own."""
    table = json.loads((sweep_folder / layout.SWEEP_REPORT).read_text())
    row = next(row for row in table["trials"] if row["name"] == trial)
    figures = json.loads((alone / layout.EVALUATION_REPORT).read_text())["figures"]
    assert {name: row["figures"][name] for name in FIGURES} == {name: figures[name] for name in FIGURES}
    assert row["final_loss"] == json.loads((alone / layout.METRICS_JSON).read_text())["train"]["final_loss"]
    weights = f"{layout.ADAPTER_DIR}/{layout.ADAPTER_WEIGHTS}"
    assert (sweep_folder / layout.TRIALS_DIR / trial / weights).read_bytes() == (alone / weights).read_bytes()


# -- with SIGKILL ------------------------------------------------------------------------------------------------------


def stage3(folder: Path, *arguments: str, kill_at: tuple[str, int] | None = None) -> list[dict[str, Any]]:
    """Run the program on the demo; killed after so many events of a kind if that is asked for. Returns its events."""
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
    begun = tmp_path / "begun"
    stage3(begun, "--auto")
    whole, hurt = copy_of(begun, tmp_path / "whole"), copy_of(begun, tmp_path / "hurt")
    events = stage3(whole, "--auto", "--num-examples", "500")
    assert sum(event["kind"] == "pair_made" for event in events) == 340
    for kind, count in (("pair_made", 90), ("pair_made", 130), ("train_step", 25)):
        stage3(hurt, "--auto", "--num-examples", "500", kill_at=(kind, count))
    stage3(hurt, "--auto", "--num-examples", "500")
    assert made(hurt) == made(whole)


@pytest.mark.slow
def test_the_table_of_a_sweep_that_was_killed_twice_matches_separate_runs(tmp_path: Path):
    folder, grid = tmp_path / "sweep", ("sweep", "--beta", "0.1,0.5", "--learning-rate", "1e-3,2e-3")
    stage3(folder, *grid, kill_at=("trial_step", 20))
    stage3(folder, *grid, kill_at=("trial_step", 70))
    events = stage3(folder, *grid)
    assert sum(event["kind"] == "trial_finished" for event in events) == 4
    halves = ("--min-eval-pairs", "40", "--eval-fraction", "0.2", "--eval-part", "first")
    for beta, rate in (("0.1", "1e-3"), ("0.5", "2e-3")):
        alone = tmp_path / f"alone-{beta}"
        stage3(alone, "--auto", "--until", "training", "--beta", beta, "--learning-rate", rate, *halves)
        check_table(folder, f"beta-{beta}_learning-rate-{float(rate):g}", alone)
    assert Run(folder).stage("training") == {}
