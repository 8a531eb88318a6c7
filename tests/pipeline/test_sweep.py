"""A sweep over small stages: pairs once, one training per trial, resumption, and a new evaluation of the best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.core import layout
from engine.core.errors import DiskError, ExitCode, NumbersError, Stopped
from engine.core.events import Event, RunFinished, TrainStep, TrialFinished, TrialStep
from engine.pipeline.best_trial import best_of
from engine.pipeline.sweep import TrialOutcome, run_sweep
from engine.pipeline.trials import trials_from_grid
from engine.run.context import Context
from engine.run.folder import Run
from engine.run.results import TrainingResult
from engine.run.state import RunState
from engine.stages.base import StageEnd
from tests.support.small_stages import SmallStage, small_stages

TRIALS = trials_from_grid({"beta": [0.1, 0.2], "learning_rate": [1e-6, 1e-5]})


@dataclass
class SmallTraining:
    """Leaves a report whose figures follow from the options; fails or stops on request."""

    trained: list[tuple[float, float, str]] = field(default_factory=list)
    failures: dict[tuple[float, float], Exception] = field(default_factory=dict)
    worse: bool = False

    def evidence(self, context: Context) -> dict[str, Any]:
        config = context.config
        return {"beta": config.beta, "learning_rate": config.learning_rate, "part": config.eval_part}

    def run(self, context: Context) -> Iterator[Event]:
        beta, rate, part = context.config.beta, context.config.learning_rate, context.config.eval_part
        yield TrainStep(1, 2, 0.69, 0.0, 0.0, 0.0, 0.5, rate, 1.0, 10.0)
        failure = self.failures.pop((beta, rate), None)
        if failure is not None:
            raise failure
        self.trained.append((beta, rate, part))
        figures = {"reward_accuracy": beta, "margin": rate, "score_change": None}
        verdict = "worse" if self.worse else "better"
        folder = context.run.folder / "evaluation"
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text(json.dumps({"verdict": verdict, "figures": figures}))
        result = TrainingResult(tensors_sha256=f"{beta} {rate}", final_loss=beta, verdict=verdict)
        return StageEnd(f"{verdict} at {beta}", result)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, context) -> SmallTraining:
    stages = small_stages(monkeypatch)
    stages["training"] = training = SmallTraining()  # type: ignore[assignment]
    training.stages = stages  # type: ignore[attr-defined]
    run = context().run
    for name in (layout.TRAIN_JSONL, layout.EVAL_JSONL, layout.PAIRS_REPORT):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}\n")
    return training


def swept(context: Context, pick: str | None = None) -> tuple[list[Event], ExitCode]:
    events, generator = [], run_sweep(context, TRIALS, pick)
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def report(context: Context) -> dict[str, Any]:
    return json.loads((context.run / layout.SWEEP_REPORT).read_text())


def of_stage(training: SmallTraining, name: str) -> SmallStage:
    return training.stages[name]  # type: ignore[attr-defined]


def test_pairs_are_made_once_and_every_trial_is_trained_on_the_first_half(training, context):
    at_work = context()
    events, code = swept(at_work)
    assert code is ExitCode.DONE and of_stage(training, "pairs").ran == 1 and of_stage(training, "packaging").ran == 0
    assert training.trained == [(0.1, 1e-6, "first"), (0.1, 1e-5, "first"), (0.2, 1e-6, "first"), (0.2, 1e-5, "first")]
    assert [row["name"] for row in report(at_work)["trials"]] == [trial.name for trial in TRIALS]
    folder = at_work.run.folder / "trials" / TRIALS[0].name
    assert Run(folder).results.training.verdict == "better" and (folder / layout.TRAIN_JSONL).stat().st_nlink == 1
    assert sum(isinstance(event, TrialStep) for event in events) == 4


def test_finished_trials_are_reused_and_interrupted_ones_continue(training, context):
    training.failures[0.2, 1e-6] = Stopped("SIGTERM")
    _, code = swept(context())
    assert code == 143 and len(training.trained) == 2
    events, code = swept(context())
    assert code is ExitCode.DONE and len(training.trained) == 4
    assert [e.reused for e in events if isinstance(e, TrialFinished)] == [True, True, False, False]


def test_a_numerical_failure_ends_a_trial_but_not_the_sweep(training, context):
    training.failures[0.1, 1e-5] = NumbersError("The loss is NaN.")
    at_work = context()
    _, code = swept(at_work)
    rows = report(at_work)["trials"]
    assert code is ExitCode.DONE and [row["outcome"] for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1]["summary"] == "The loss is NaN." and rows[1]["figures"] == {}


def test_a_full_disk_ends_the_sweep_with_its_exit_code(training, context):
    training.failures[0.1, 1e-5] = DiskError("No space.")
    events, code = swept(context())
    assert code is ExitCode.DISK and len(training.trained) == 1
    assert isinstance(events[-1], RunFinished) and "No space." in events[-1].summary


def test_the_best_trial_is_evaluated_on_the_other_half_and_packed(training, context):
    at_work = context()
    _, code = swept(at_work, pick="best")
    assert code is ExitCode.DONE and training.trained[-1] == (0.2, 1e-5, "second")
    assert of_stage(training, "packaging").ran == 1
    assert report(at_work)["picked"] == TRIALS[3].name
    assert at_work.run.manifest["config"]["beta"] == 0.2 and at_work.run.manifest["config"]["eval_part"] == "second"


@pytest.mark.parametrize("pick", [TRIALS[1].name, "2"])
def test_a_person_may_pick_another_by_name_or_number(pick, training, context):
    swept(context(), pick=pick)
    assert training.trained[-1] == (0.1, 1e-5, "second")


def test_picking_an_unknown_trial_is_a_usage_error_and_packs_nothing(training, context):
    _, code = swept(context(), pick="beta-9")
    assert code is ExitCode.USAGE and of_stage(training, "packaging").ran == 0


def test_if_every_trial_is_worse_none_is_picked(training, context):
    training.worse = True
    _, code = swept(context(), pick="best")
    assert code is ExitCode.DATA and of_stage(training, "packaging").ran == 0


def row(name: str, **figures: float | None) -> TrialOutcome:
    return TrialOutcome(name, {}, "done", verdict="better", figures=figures)


def test_the_best_is_chosen_by_the_judge_then_by_accuracy_then_by_margin_then_by_order():
    a, b = row("a", score_change=0.1, reward_accuracy=1.0), row("b", score_change=0.2, reward_accuracy=0.5)
    assert best_of([a, b]) is b
    c, d = row("c", reward_accuracy=0.7, margin=9.0), row("d", reward_accuracy=0.8, margin=0.1)
    assert best_of([c, d]) is d
    e, f = row("e", reward_accuracy=0.8, margin=0.1), row("f", reward_accuracy=0.8, margin=0.1)
    assert best_of([e, f]) is e
    assert best_of([]) is None


def test_a_screen_folds_the_trials(training, context):
    state = RunState()
    for event in swept(context())[0]:
        state = state.apply(event, 1.0)
    assert list(state.trials) == [trial.name for trial in TRIALS] and state.trials_total == 4
    assert all(trial.finished is not None and len(trial.steps) == 1 for trial in state.trials.values())
