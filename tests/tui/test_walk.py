"""The whole wizard over a small real demo run: with keys alone and a token, from the first screen to the archive, all of it from a
Hub; and with the mouse alone, over a run that has ended with its training, to the archive.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import datasets
import pytest

from engine.core import layout
from engine.core.config import Stage3Config, load_config
from engine.core.stage_table import STAGES
from engine.pairs.data.edits import read_edits
from engine.run.folder import Run
from tests.support.demo_on_hub import REPOSITORIES, options_from_the_hub, put_demo_on
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.hub_in_process import CANARY, use
from tests.support.idle_wizard import click_on, is_open, screen_text, until
from tests.support.short_demo import SHORT
from tests.support.short_run import PROMPTS, copy_of
from tui.pair_browser.browser import PairBrowser
from tui.runs.runner import Runner
from tui.screens.dialogs import Help, Question
from tui.screens.plan import PlanWindow
from tui.widgets.token_field import FILLED
from tui.wizard.app import Wizard, WizardEnd

SMALL = {**SHORT, "save_steps": 25, "pilot_prompts": 0, "min_pairs": 4, "eval_prompts": 1, "eval_harmless_prompts": 1}
LONG = 240.0
"""Seconds that all ten stages may take on a busy machine."""


@pytest.fixture
def small_demo(tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    made: list[Runner] = []

    def start(preset: Mapping[str, object]) -> Runner:
        folder = tmp_path / "stage3_constitutional"
        config: Stage3Config = load_config({**SMALL, "output_dir": folder}, preset=dict(preset), environment={})
        run = Run(folder)
        run.acquire()
        made.append(Runner(config, run))
        return made[-1]

    yield start
    for runner in made:
        runner.stop("the test is over")
        runner.join(60)
        runner.run.release()


def assert_the_run_is_whole(runner: Runner, *, credentials: str = "skipped") -> None:
    statuses = {name: runner.run.stage(name)["status"] for name in STAGES}
    assert statuses == {**dict.fromkeys(STAGES, "done"), "credentials": credentials}
    with zipfile.ZipFile(runner.run.archive) as archive:
        assert any(name.endswith("adapter_model.safetensors") for name in archive.namelist())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with fake_hub() as server:
        put_demo_on(server)
        use(server, monkeypatch, tmp_path / "home")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "home" / "hub"))  # for the process that loads the archive
        yield server


async def test_with_keys_alone_and_a_token(small_demo, hub: FakeHub, short_run: Path):
    runner = small_demo(options_from_the_hub())
    runner.run.record_stage(
        "dependencies", result=Run(short_run).result("dependencies")
    )  # do not try the imports a second time
    app = Wizard(runner)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "P presets" in screen_text(app))
        await pilot.press("question_mark")
        await until(pilot, lambda: is_open(app, Help))
        await pilot.press("escape", "t", "down", "enter")
        await until(pilot, lambda: app.screen is app.main and app.theme == app.theme_names[1])

        await pilot.press("7", "o")
        await until(pilot, lambda: app.main.view.STAGE == "pairs" and app.main.view.page == "Options")
        await until(pilot, lambda: "num-examples" in screen_text(app))
        await pilot.press("slash", *"num-examples", "enter", "enter", "ctrl+u", *"14", "enter")
        await until(pilot, lambda: runner.config.num_examples == 14)

        await pilot.press("escape", "escape", "7", "r")
        await until(pilot, lambda: "someone/tiny without a token" in screen_text(app), "a refusal", LONG)
        assert f"{hub.endpoint}/someone/tiny" in screen_text(app), "the page to open"
        await until(pilot, lambda: not runner.running)
        await pilot.press("tab", *CANARY)
        await until(pilot, lambda: FILLED in screen_text(app))
        assert CANARY[:8] not in screen_text(app)
        await pilot.press("enter")
        await until(
            pilot, lambda: runner.run.stage("credentials").get("status") == "done", "the token to be taken", LONG
        )
        await until(pilot, lambda: "someone may read" in screen_text(app))
        for repo, _ in REPOSITORIES.values():
            assert re.search(rf"✓ .*{repo}", screen_text(app)), screen_text(app)

        await until(pilot, lambda: not runner.running)
        await pilot.press("7", "r")
        await until(pilot, lambda: runner.running)
        await until(pilot, lambda: not runner.running, "seven stages", LONG)
        await until(pilot, lambda: "usable of 14 prompts" in screen_text(app))
        await pilot.press("b")
        await until(pilot, lambda: app.main.view.query("#browser"))
        browser = app.main.view.query_one(PairBrowser)
        await until(
            pilot, lambda: browser.pairs.count == 14 and not browser.store.unchecked and browser.pairs.has_focus
        )
        await pilot.press("x", "j", "m", *"fine", "ctrl+s")
        edits = runner.run / layout.EDITS_JSONL
        await until(pilot, lambda: len(read_edits(edits)) == 2)

        await pilot.press("a", "enter")
        await until(
            pilot, lambda: runner.running and runner.snapshot().latest in ("quality", "training"), "quality", LONG
        )
        await pilot.press("1")  # back to a finished stage, while another one runs
        await until(pilot, lambda: app.main.selected == "workspace" and "free disk" in screen_text(app))
        await pilot.press("f")
        await until(pilot, lambda: not runner.running, "the other stages", LONG)
        assert_the_run_is_whole(runner, credentials="done")
        assert runner.run.result("quality")["left_out"] == {"rejected": 1}
        await until(pilot, lambda: "✓ finished" in screen_text(app) and "scp " in screen_text(app))
        await pilot.press("9", "v")
        await until(pilot, lambda: app.main.selected == "training")
        await pilot.press("c", "q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value is WizardEnd.FINISHED


@pytest.fixture
def trained(short_run: Path, tmp_path: Path) -> Iterator[Runner]:
    """A copy of a run that ended with its training."""
    run = Run(copy_of(short_run, tmp_path / "stage3_constitutional"))
    recorded = {name: value for name, value in run.manifest["config"].items() if value is not None}
    run.acquire()
    runner = Runner(load_config({**recorded, "output_dir": run.folder}, environment={}), run)
    yield runner
    runner.stop("the test is over")
    runner.join(60)
    runner.run.release()


async def test_with_the_mouse_alone(trained: Runner):
    runner = trained
    app = Wizard(runner)
    footer = range(39, 40)
    async with app.run_test(size=(130, 40)) as pilot:
        on = partial(click_on, pilot, app)
        await until(pilot, lambda: app.main.is_ready)
        await on("Training", lambda: app.main.selected == "training")
        await on(" Options ", lambda: "learning-rate" in screen_text(app))
        await on("more options", lambda: "save-steps" in screen_text(app))
        await on("save-steps", lambda: "Optimizer steps between checkpoints" in screen_text(app), rows=range(8, 30))
        await on("? help", lambda: is_open(app, Help), rows=footer)
        await pilot.click(offset=(0, 0))
        await until(pilot, lambda: app.screen is app.main)

        await on("a run all", lambda: is_open(app, PlanWindow), rows=footer)
        await until(pilot, lambda: "Packaging" in screen_text(app) and "reused" in screen_text(app), "the plan", LONG)
        await on("Enter starts", lambda: runner.running)
        await on("q quit", lambda: is_open(app, Question), rows=footer)
        await on("cancel", lambda: app.screen is app.main)
        await on("Quality", lambda: app.main.selected == "quality", rows=range(30))
        await on(" Pairs ", lambda: app.main.view.query("#browser"), rows=range(4, 8))
        browser = app.main.view.query_one(PairBrowser)
        await until(pilot, lambda: browser.pairs.count == PROMPTS, "all pairs", LONG)
        await pilot.click("#pair-list", offset=(20, 3))
        await until(pilot, lambda: browser.pairs.cursor == 3)
        await on("/ filter", lambda: app.main.focused is not None and app.main.focused.id == "pair-filter", rows=footer)

        await until(pilot, lambda: not runner.running, "all ten stages", LONG)
        assert_the_run_is_whole(runner)
        await on("Packaging", lambda: app.main.selected == "packaging")
        await on("scp ", lambda: app.clipboard.startswith("scp "))
        await on("q quit", lambda: app.return_value is not None, rows=footer)
    assert app.return_value is WizardEnd.FINISHED
    assert not (runner.run / layout.EDITS_JSONL).exists()
