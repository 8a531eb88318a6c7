"""The screens that `test_snapshots.py` does not keep: `make screens` draws them at three sizes in three themes; each must fit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.core import layout
from engine.core.events import EvalDone, Message, RunFinished, RunStarted, StageFinished, StageStarted
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from engine.run.listing import find_runs
from tests.pipeline.test_compare import compared_run
from tests.run.test_listing import made_run
from tests.support.idle_wizard import Sessions, open_stage, screen_text, until
from tests.support.made_up_run import make_run, write_pairs
from tests.support.shots import NOW, SHOWN, SIZES, TO_LOOK_AT, Shots, ShownPath
from tests.tui.test_plan_window import PLANNED
from tests.tui.test_trials_page import EVENTS
from tui.runs.pair_file import PairFile
from tui.runs.runner import Runner
from tui.runs.watcher import Watcher
from tui.screens.compare import CompareScreen
from tui.wizard.app import Wizard
from tui.wizard.pair_file import PairFileBrowser
from tui.wizard.run_chooser import RunChooser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("still"),
    pytest.mark.parametrize(("size", "theme"), TO_LOOK_AT),
]


def ended(stage: str, outcome: str, code: int, what: str, why: str, what_to_do: str) -> StageFinished:
    return StageFinished(stage, outcome, what, what=what, why=why, what_to_do=what_to_do, exit_code=code)


ENDINGS = (
    ended(
        "training", "failed", 8, "The loss of step 77 is not a number.",
        "The numbers overflowed in float16, or the learning rate is too high.",
        "Run it again with --dtype bfloat16 or a lower --learning-rate. The checkpoint of step 75 is compared.",
    ),
    ended("pairs", "stopped", 143, "Stopped by SIGTERM.", "", "Run the same command again: it goes on with the next prompt."),
    ended(
        "adapter", "failed", 3, "artifacts/stage2_finetuning_artifacts/lora_adapters is not there.",
        "Stage 3 starts from the LoRA adapter of Stage 2.", "Give its folder or Hub id: --adapter-path.",
    ),
    ended(
        "dependencies", "failed", 3, "torch 2.13.0+cu128 needs driver 570 or newer; this one is 535.",
        "Its CUDA build is newer than the driver.", "Install torch built for CUDA 12.2, or a newer driver.",
    ),
)  # fmt: skip


async def test_the_list_of_runs_and_a_comparison(size: str, theme: str, tmp_path: Path, config):
    for name, beta in (("first-try", 0.1), ("stronger", 0.3), ("weaker", 0.05)):
        compared_run(
            tmp_path / name, beta=beta, reward_accuracy=0.75, reward_accuracy_low=0.5, reward_accuracy_high=0.9
        )
    made_run(tmp_path / "broken-off", "training", "failed")
    app = RunChooser(config(output_dir=tmp_path / "new"), tmp_path, find_runs(tmp_path))
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await shots.take("runs", compared=False)
        await pilot.press("g", "x", "x", "x", "c")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and "3 runs" in screen_text(app))
        await shots.take("compare", compared=False)
        shots.check()


async def test_a_sweep_and_other_verdicts(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, pairs=20))
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        state = app.source._state
        whole = state
        for event in EVENTS:
            state = state.apply(event, NOW - 80)
        app.source._state = state
        await open_stage(pilot, app, "training")
        await app.main.view.turn_to("Trials")
        await shots.take("trials", compared=False)
        assert whole.evaluation is not None
        for word, why in (
            ("worse", "Unusable answers rose from 3 of 40 to 17 of 40, by more than chance."),
            ("cannot tell", "Nothing scored the answers, and unfit ones did not fall clearly."),
            ("no different", "No more wins than chance allows: 21 better, 19 worse."),
        ):
            shown = EvalDone(word, (why, *whole.evaluation.reasons[1:]), whole.evaluation.figures, (), "no judge")
            app.source._state = replace(whole, evaluation=shown)
            await app.main.view.turn_to("Verdict")
            await shots.take(f"verdict-{word.replace(' ', '-')}", compared=False)
        shots.check()


async def test_questions_and_windows(
    finished: Runner, sessions: Sessions, monkeypatch, size: str, theme: str, tmp_path: Path
):
    app = Wizard(finished)
    monkeypatch.setattr(finished, "plan", lambda until: PLANNED)
    finished.run.folder = ShownPath(finished.run.folder)
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await open_stage(pilot, app, "training")
        for name, key in (("plan", "p"), ("palette", "ctrl+k")):
            await pilot.press(key)
            await until(pilot, lambda: app.screen is not app.main)
            await pilot.pause(0.3)
            await shots.take(f"window-{name}", compared=False, is_ours=name != "palette")  # Textual's own
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.main)
        await open_stage(pilot, app, "workspace")
        await app.main.view.turn_to("Start")
        await until(pilot, lambda: "Base model" in screen_text(app))
        await shots.take("start-finished", compared=False)
        await pilot.press("P")
        await until(pilot, lambda: app.screen is not app.main)
        await shots.take("window-presets", compared=False)
        await pilot.press("escape")
        finished.start(until="training")
        await until(pilot, lambda: finished.snapshot().current is not None)
        await pilot.press("q")
        await until(pilot, lambda: app.screen is not app.main)
        await shots.take("window-quit", compared=False)
        sessions.last.released.set()
        shots.check()


async def test_while_pairs_are_made_and_for_a_watcher(size: str, theme: str, tmp_path: Path, config):
    folder = make_run(tmp_path / "stage3_constitutional", through="pairs", pairs=40)
    run = Run(folder)
    run.folder = ShownPath(run.folder)
    watcher = Watcher(run, config(output_dir=folder), allows_decisions=True)
    watcher._owner_alive, watcher._owner_asked = True, time.monotonic() + 3_600
    app = Wizard(watcher)
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await open_stage(pilot, app, "pairs")
        await shots.take("watching-pairs", compared=False)
        await open_stage(pilot, app, "workspace")
        await app.main.view.turn_to("Options")
        await shots.take("watching-options", compared=False)
        shots.check()


async def test_what_failed_and_what_was_stopped(wizard, size: str, theme: str, tmp_path: Path):
    app = wizard(lambda folder: make_run(folder, through="training", pairs=20))
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        begun = app.source._state.apply(RunStarted(SHOWN, "0.1.0", 7, "gpu-box", "", STAGES), NOW - 900)
        for finished in ENDINGS:
            stage = finished.stage
            state = begun.apply(StageStarted(stage), NOW - 100)
            state = state.apply(Message("info", f"The last thing that {stage} said.", stage), NOW - 60)
            state = state.apply(finished, NOW - 50).apply(RunFinished(finished.exit_code, finished.summary), NOW - 50)
            app.source._state = state
            app.notifications._finished = state.finished
            await open_stage(pilot, app, stage)
            app.main.view.forget_choice()
            await shots.take(f"failed-{stage}", compared=False)
        shots.check()


async def test_a_file_of_pairs_and_the_charts_with_a_cursor(
    wizard, size: str, theme: str, tmp_path: Path, config: Callable[..., Any]
):
    file = tmp_path / "preferences.jsonl"
    write_pairs(file, 30)
    source = PairFile(file, config())
    source.open()
    browser = PairFileBrowser(source)
    async with browser.run_test(size=SIZES[size]) as pilot:
        await until(pilot, lambda: "30 pairs" in screen_text(browser))
        shots = Shots(pilot, browser, size, theme, tmp_path)
        await pilot.pause(0.3)
        await shots.take("browse-file", compared=False)
        shots.check()
    source.close()
    app = wizard(lambda folder: make_run(folder, pairs=20), charts="blocks")
    async with app.run_test(size=SIZES[size]) as pilot:
        shots = Shots(pilot, app, size, theme, tmp_path)
        await open_stage(pilot, app, "training")
        await app.main.view.turn_to("Curves")
        await until(pilot, lambda: app.main.focused is not None)
        await pilot.press("left", "left")
        await shots.take("curves-blocks-cursor", compared=False)
        await open_stage(pilot, app, "quality")
        done = app.source._state.stages["quality"]
        stages = {**app.source._state.stages, "quality": replace(done, facts={"edits_bytes": 0})}
        app.source._state = replace(app.source._state, stages=stages)
        path = app.source.run / layout.EDITS_JSONL
        path.write_text('{"id": "pair-000001", "action": "reject", "time": 1}\n')
        await app.main.view.turn_to("Gate")
        await shots.take("gate-waiting", compared=False)
        shots.check()
