"""Take the screenshots in the README and docs: the wizard on real demo runs, as SVG.

    python docs/pictures.py [NAME …]

The runs have finished by then: the wizard shows the fold of their journals, as `stage3-tui attach` does. Only the first
page shows a run that has not started, with the demo's model in its own folder. Everything happens in a temporary home
folder and under another host name, so that no screenshot shows this machine's.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from textual.app import App

from engine.core.config import load_config
from engine.demo.preset import ASSETS, demo_defaults
from engine.run.folder import Run
from engine.run.listing import find_runs
from tui.cli import main as stage3_tui
from tui.runs.runner import Runner
from tui.runs.watcher import Watcher
from tui.wizard.app import Wizard
from tui.wizard.run_chooser import RunChooser

FOLDER = Path(__file__).resolve().parent
RUNS = Path("artifacts")
RUN = RUNS / "stage3_constitutional"
SIZE = (120, 36)


class Picture(NamedTuple):
    """The keys that lead to the screen, and its theme."""

    keys: tuple[str, ...]
    theme: str = "midnight"


PICTURES: dict[str, Picture] = {
    "training": Picture(("9", "V")),
    "pairs": Picture(("7",)),
    "browser": Picture(("b", *"jjjj"), "daylight"),
    "verdict": Picture(("9",)),
    "quality": Picture(("8",), "ember"),
}


async def take_stage(name: str, picture: Picture) -> None:
    """Take a screen of the finished run."""
    source = Watcher(Run(RUN), load_config({"theme": picture.theme}, environment={}))
    source.open()
    await take(name, Wizard(source), picture.keys)
    source.close()


async def take_first_page() -> None:
    shutil.copytree(ASSETS, "models")
    copies = {"base_model_id": "models/base", "adapter_path": "models/adapter", "dataset": "models/prompts"}
    config = load_config({"output_dir": RUNS / "next", **copies}, preset=demo_defaults(), environment={})
    source = Runner(config, Run(config.output_dir))
    await take("start", Wizard(source), ())
    source.close()


async def take_comparison() -> None:
    """Take the comparison of both runs, starting from the list of runs."""
    config = load_config({"output_dir": RUN}, environment={})
    await take(
        "compare",
        RunChooser(config, RUNS.resolve(), find_runs(RUNS.resolve(), 1)),
        ("k", "x", "x", "c"),
        settle_seconds=3.0,
    )


async def take(name: str, app: App[Any], keys: Sequence[str], settle_seconds: float = 1.0) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(1.0)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.5)
        await pilot.pause(settle_seconds)
        svg = app.export_screenshot(title="stage3-tui")
    (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/{name}.svg")


async def take_all(names: Sequence[str]) -> None:
    for name in names:
        if name == "start":
            await take_first_page()
        elif name == "compare":
            await take_comparison()
        else:
            await take_stage(name, PICTURES[name])


def demo_run(*options: str) -> None:
    if stage3_tui(["--auto", "--demo", *options]) != 0:
        sys.exit("a demo run failed, so there are no screenshots")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HOME"] = scratch
        platform.node = lambda: "gpu-box"
        os.chdir(scratch)
        names = sys.argv[1:] or [*PICTURES, "start", "compare"]
        if set(names) != {"start"}:
            demo_run("--output-dir", str(RUN))
        if "compare" in names:
            demo_run("--output-dir", str(RUNS / "slower"), "--learning-rate", "1e-3")
        asyncio.run(take_all(names))
