"""The README's pictures: screens of the wizard over a real demo run, as SVG.

    python docs/pictures.py [RUN_DIR]      without RUN_DIR it makes a demo run first

The run is over when the pictures are taken: what they show is the fold of its journal, as `stage3-tui attach` shows it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from engine.config import load_config
from engine.run import Run
from tui.app import Wizard
from tui.cli import main as stage3_tui
from tui.watcher import Watcher

FOLDER = Path(__file__).parent
SIZE = (120, 36)
PICTURES: dict[str, tuple[str, ...]] = {
    # name: keys that lead there
    "pairs": ("7",),
    "quality": ("8",),
    "training": ("9", "v", "v"),
    "verdict": ("9",),
}


async def take(run: Path) -> None:
    for name, keys in PICTURES.items():
        source = Watcher(Run(run), load_config(environment={}))
        wizard = Wizard(source)
        source.open()
        async with wizard.run_test(size=SIZE) as pilot:
            await pilot.pause(1.0)
            await pilot.press(*keys)
            await pilot.pause(1.0)
            svg = wizard.export_screenshot(title="stage3-tui")
        source.close()
        (FOLDER / f"{name}.svg").write_text(svg.replace(str(run.parent), "artifacts"), encoding="utf-8")
        print(f"docs/{name}.svg")


def demo_run(folder: Path) -> Path:
    run = folder / "stage3_constitutional"
    if stage3_tui(["--auto", "--demo", "--output-dir", str(run)]) != 0:
        sys.exit("the demo run failed: no pictures")
    return run


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(take(Path(sys.argv[1]).resolve()))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            asyncio.run(take(demo_run(Path(scratch))))
