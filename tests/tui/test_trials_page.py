"""A sweep's trials on the screen as they progress, in the wizard and in a watching terminal."""

from __future__ import annotations

from pathlib import Path

from engine.core import layout
from engine.core.events import TrialFinished, TrialStarted, TrialStep
from engine.run.folder import Run
from engine.run.journal import Journal
from engine.run.state import RunState
from tests.support.idle_wizard import open_stage, screen_text, until
from tests.support.made_up_run import make_run
from tui.runs.watcher import Watcher
from tui.screens.trials import trial_lines
from tui.wizard.app import Wizard

STARTED = [TrialStarted(f"beta-{beta}", number, 3, {"beta": beta}, "trials/x") for number, beta in ((1, 0.1), (2, 0.3))]
FIGURES = {"reward_accuracy": 0.8, "reward_accuracy_low": 0.6, "reward_accuracy_high": 0.9, "margin": 0.25}
EVENTS = [
    STARTED[0],
    TrialStep("beta-0.1", 1, 2, 0.69, 0.0, 0.5),
    TrialFinished("beta-0.1", "done", "2 steps", "better", FIGURES, final_loss=0.5, seconds=75.0),
    STARTED[1],
    TrialStep("beta-0.3", 7, 9, 0.61, 0.125, 0.75),
]


def folded() -> RunState:
    state = RunState()
    for event in EVENTS:
        state = state.apply(event, 100.0)
    return state


def test_a_running_trial_shows_its_progress_and_a_finished_one_its_result():
    state = folded()
    for width in (78, 160):
        lines = [line.plain for line in trial_lines(state.trials.values(), state.trials_total, 130.0, width)]
        assert all(len(line) <= width for line in lines)
        shown = "\n".join(lines)
        assert "1 of 3 finished" in shown and "1 more waiting" in shown
        assert "✓ 1  beta 0.1" in shown and "better  1m 15s" in shown and "accuracy 80% (60–90%)" in shown
        assert "▶ 2  beta 0.3" in shown and "step 7 / 9  30s" in shown and "loss 0.6100" in shown


def test_a_failed_trial_shows_why():
    state = folded().apply(TrialFinished("beta-0.3", "failed", "The loss is NaN [/]."), 140.0)
    assert any("The loss is NaN [/]." in line.plain for line in trial_lines(state.trials.values(), 3, 150.0, 78))


def test_once_all_have_finished_the_best_trials_verdict_is_shown_large():
    last = TrialFinished("beta-0.3", "done", "9 steps", "no different", {**FIGURES, "reward_accuracy": 0.6})
    state = folded().apply(last, 140.0)
    shown = "\n".join(line.plain for line in trial_lines(state.trials.values(), 2, 150.0, 118))
    assert "Trial 1 leads: beta 0.1" in shown and "█▀▄ █▀▀ ▀█▀" in shown
    assert shown.count("●") == 2, "a bar for the accuracy of each trial"
    worse = folded().apply(TrialFinished("beta-0.1", "done", "", "worse", {}), 140.0)
    worse = worse.apply(TrialFinished("beta-0.3", "failed", "NaN"), 140.0)
    assert any("No trial qualifies" in line.plain for line in trial_lines(worse.trials.values(), 2, 150.0, 78))


async def test_a_watcher_of_a_sweep_sees_new_trials(tmp_path: Path, config):
    folder = make_run(tmp_path / "run", through="quality", pairs=20)
    watcher = Watcher(Run(folder), config(output_dir=folder))
    app = Wizard(watcher)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.main.is_ready)
        await open_stage(pilot, app, "training")
        assert "Trials" not in app.main.view.pages
        await pilot.press("f")
        journal = Journal(folder / layout.EVENTS_JSONL)
        for event in EVENTS:
            journal.append(event)
        journal.close()
        watcher.read()
        await until(pilot, lambda: "▶ 2  beta 0.3" in screen_text(app) and app.main.view.page == "Trials")
