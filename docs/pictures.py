"""The README's pictures: screens of the wizard over a real demo run, as SVG.

    python docs/pictures.py

The run is over when the pictures are taken: what they show is the fold of its journal, as `stage3-tui attach` shows it. It is made
in a home folder of its own, and by a machine with another name, so that no picture names this one.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from engine.core.config import load_config
from engine.run.folder import Run
from tui.cli import main as stage3_tui
from tui.runs.watcher import Watcher
from tui.wizard.app import Wizard

FOLDER = Path(__file__).parent
SIZE = (120, 36)


class Picture(NamedTuple):
    """Where it is taken: the keys that lead there, and the theme that is worn."""

    keys: tuple[str, ...]
    theme: str = "midnight"


PICTURES: dict[str, Picture] = {
    "training": Picture(("9", "V")),
    "pairs": Picture(("7",)),
    "browser": Picture(("b", *"jjjj"), "daylight"),
    "verdict": Picture(("9",)),
    "quality": Picture(("8",), "ember"),
}


async def take(run: Path) -> None:
    for name, picture in PICTURES.items():
        source = Watcher(Run(run), load_config({"theme": picture.theme}, environment={}))
        wizard = Wizard(source)
        source.open()
        async with wizard.run_test(size=SIZE) as pilot:
            await pilot.pause(1.0)
            for key in picture.keys:
                await pilot.press(key)
                await pilot.pause(0.5)
            await pilot.pause(1.0)
            svg = wizard.export_screenshot(title="stage3-tui")
        source.close()
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"docs/{name}.svg")


def demo_run(home: Path) -> Path:
    run = home / "artifacts" / "stage3_constitutional"
    if stage3_tui(["--auto", "--demo", "--output-dir", str(run)]) != 0:
        sys.exit("the demo run failed: no pictures")
    return run


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HOME"] = scratch
        platform.node = lambda: "gpu-box"
        asyncio.run(take(demo_run(Path(scratch))))
