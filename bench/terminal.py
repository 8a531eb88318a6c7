"""The cost of the wizard: its first paint, its CPU time and output during training, and the time to open, filter and
scroll pairs.

    python bench/terminal.py [--seconds 20] [--only paint training pairs]

The training is a journal that grows by five steps per second: `attach` draws it as the wizard would, in its own
process, so that only the screen is measured. For comparison: Textual's default 60 frames per second, its DataTable for
the list, and importing the training stack before the first paint.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from textual.app import App, ComposeResult
from textual.widgets import DataTable

from engine.core import layout
from engine.core.config import load_config
from engine.core.events import Event, GpuReading, RunStarted, StageStarted, Telemetry, TrainStep
from engine.core.stage_table import STAGES
from engine.run.folder import Run
from tests.support.good_pairs import row
from tests.support.made_up_run import write_events
from tests.support.pseudo_terminal import WIZARD, PseudoTerminal
from tui.pair_browser.browser import PairBrowser
from tui.runs.runner import Runner
from tui.wizard.app import Wizard

SIZES = {"80x24": (80, 24), "200x50": (200, 50)}
STEPS_PER_SECOND = 5
INITIAL_STEPS = 400
"""Steps already in the curve at the start."""
COUNTS = (2_500, 10_000, 100_000)
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure each training screen")
    parser.add_argument("--repeat", type=int, default=5, help="how many times to measure the first paint")
    parser.add_argument(
        "--only", nargs="*", choices=("paint", "training", "pairs"), default=("paint", "training", "pairs")
    )
    given = parser.parse_args()
    if "paint" in given.only:
        first_paint(given.repeat)
    if "training" in given.only:
        training(given.seconds)
    if "pairs" in given.only:
        asyncio.run(pairs())


# -- first paint -------------------------------------------------------------------------------------------------------


def first_paint(repeat: int) -> None:
    print(f"{'first paint':40}{'best':>8}{'median':>8}")
    cases: dict[str, Callable[[], float]] = {
        f"wizard at {size}": lambda columns=columns, rows=rows: paint(columns, rows)
        for size, (columns, rows) in SIZES.items()
    }
    cases["import of DPOTrainer alone"] = lambda: wall([sys.executable, "-c", "from trl import DPOTrainer"])
    for name, measure in cases.items():
        taken = sorted(measure() for _ in range(repeat))
        print(f"{name:40}{taken[0]:7.2f}s{taken[len(taken) // 2]:7.2f}s")


def paint(columns: int, rows: int) -> float:
    """Seconds from the start of the process until the first stage's name is on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        terminal = PseudoTerminal([*WIZARD, "--demo", "--output-dir", f"{folder}/run"], columns=columns, rows=rows)
        while "Workspace" not in terminal.text:
            terminal.read(0.01)
        seconds = time.perf_counter() - started
        terminal.press("q")
        terminal.end()
        return seconds


def wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


# -- training ----------------------------------------------------------------------------------------------------------


def training(seconds: float) -> None:
    print(f"\n{'training, 5 steps per second':40}{'CPU':>8}{'kB/s':>8}{'RSS':>9}")
    for name, environment in {"": {}, ", at 60 frames per second": {"TEXTUAL_FPS": "60"}}.items():
        for size, (columns, rows) in SIZES.items():
            cpu, bytes_per_second, rss = watch(columns, rows, seconds, **environment)
            print(f"{size + name:40}{cpu:7.1f}%{bytes_per_second / 1000:8.1f}{rss / 2**20:6.0f} MB")
    cpu, bytes_per_second, rss = watch(200, 50, seconds, steps=False)
    print(f"{'200x50, idle':40}{cpu:7.1f}%{bytes_per_second / 1000:8.1f}{rss / 2**20:6.0f} MB")


def watch(
    columns: int, rows: int, seconds: float, *, steps: bool = True, **environment: str
) -> tuple[float, float, float]:
    """(% of one core, bytes of output per second, bytes of memory) of `attach` on the training screen."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(scratch) / "run")
        run.acquire()  # by this living process, so the run counts as running
        journal = GrowingJournal(run.folder)
        journal.begin()
        terminal = PseudoTerminal([*WIZARD, "attach", str(run.folder)], columns=columns, rows=rows, **environment)
        try:
            terminal.wait_for("Reward margin")
            terminal.rest(2.0)
            process = psutil.Process(terminal.pid)
            before, seen, started = process.cpu_times(), len(terminal.seen), time.monotonic()
            while time.monotonic() - started < seconds:
                if steps:
                    journal.step()
                terminal.rest(1 / STEPS_PER_SECOND)
            took, after = time.monotonic() - started, process.cpu_times()
            cpu = (after.user + after.system - before.user - before.system) / took
            return 100 * cpu, (len(terminal.seen) - seen) / took, float(process.memory_info().rss)
        finally:
            terminal.kill()
            run.release()


class GrowingJournal:
    """Writes the events of a training run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / layout.EVENTS_JSONL
        self._folder, self._seq, self._step = folder, 0, 0
        self._chance = random.Random(1)

    def begin(self) -> None:
        now = time.time()
        self._write((now, RunStarted(str(self._folder), "0", 1, "bench", "", STAGES)))
        self._write((now, StageStarted("training", "")))
        self._write(*((now, self._next()) for _ in range(INITIAL_STEPS)), (now, self._reading()))

    def step(self) -> None:
        now = time.time()
        self._write((now, self._next()))
        if self._step % STEPS_PER_SECOND == 0:
            self._write((now, self._reading()))

    def _write(self, *events: tuple[float, Event]) -> None:
        write_events(self._path, events, first_seq=self._seq)
        self._seq += len(events)

    def _next(self) -> TrainStep:
        self._step += 1
        noise = self._chance.gauss(0, 0.03)
        loss = math.log(2) * math.exp(-self._step / 900) + noise
        margin = 1 - math.exp(-self._step / 300) - noise
        return TrainStep(
            self._step,
            2_000,
            loss,
            margin / 2,
            -margin / 2,
            margin,
            0.9 + noise,
            5e-5,
            1 + noise,
            2310.0 + 100 * noise,
            0.5,
        )

    def _reading(self) -> Telemetry:
        used = int((52 + 8 * self._chance.random()) * GIB)
        gpu = GpuReading(0, "NVIDIA H100 80GB HBM3", used, 80 * GIB, 90 + 9 * self._chance.random(), 61.0, 412.0)
        return Telemetry((gpu,), 9 * GIB, 21 * GIB, 128 * GIB, 37.0)


# -- pairs -------------------------------------------------------------------------------------------------------------


async def pairs() -> None:
    print(
        f"\n{'pairs, 160x48':32}{'first rows':>11}{'all rows':>10}{'judged':>9}{'filter':>9}{'reason:':>9}{'sort':>8}{'page':>8}"
    )
    for count in COUNTS:
        cells = zip(await browser(count), (10, 9, 8, 8, 8, 7, 7), strict=True)
        print(f"{f'{count:,} in the browser':32}" + "".join(f"{value:{width}.3f}s" for value, width in cells))
    for count in COUNTS[:2]:
        opened, filtered = await data_table(count)
        print(f"{f'{count:,} in a DataTable':32}{'':11}{opened:9.3f}s{'':9}{filtered:8.3f}s")


async def browser(count: int) -> tuple[float, ...]:
    """Seconds until the first rows are there, all rows, all judged; and for a filter by a word, by a reason, a sort and a page."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write_many(folder, count)
        app = Wizard(Runner(load_config({"output_dir": folder}, environment={}), Run(folder)))
        async with app.run_test(size=(160, 48)) as pilot:
            await pilot.pause(0.5)
            started = time.perf_counter()
            await app.main.action_browse()
            while app.main.view is None or not app.main.view.query("#pair-list"):
                await asyncio.sleep(0.005)
            found = app.main.view.query_one(PairBrowser)
            first = await until(lambda: found.pairs.count, started)
            every = await until(lambda: found.pairs.count == count, started)
            page = await timed(lambda: found.pairs.action_cursor("page_down"), app)
            word = await timed(lambda: found.pairs.filter("number 17"), app)
            found.pairs.filter("")
            judged = await until(lambda: not found.store.unchecked, started)
            reason = await timed(lambda: found.pairs.filter("reason:meta"), app)
            found.pairs.filter("")
            sort = await timed(lambda: found.pairs.sort(found.pairs.order.next(3)), app)
            return first, every, judged, word, reason, sort, page


def write_many(folder: Path, count: int) -> None:
    path = folder / layout.PAIRS_JSONL
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for number in range(count):
            changes = {"revised_response": "The revised answer is clear."} if number % 9 == 0 else {}
            file.write(json.dumps(row(number, **changes)) + "\n")


async def until(holds: Callable[[], object], started: float) -> float:
    while not holds():
        await asyncio.sleep(0.005)
    return time.perf_counter() - started


async def timed(do: Callable[[], object], app: App[Any]) -> float:
    """Seconds until the change that `do` makes is drawn. (Pilot's own pause waits for an idle CPU, up to a second.)"""
    drawn = asyncio.Event()
    started = time.perf_counter()
    do()
    app.screen.call_after_refresh(drawn.set)
    await drawn.wait()
    return time.perf_counter() - started


async def data_table(count: int) -> tuple[float, float]:
    """Seconds to show `count` rows in Textual's table, and to show those that match a word."""

    class Table(App[None]):
        def compose(self) -> ComposeResult:
            yield DataTable()

    app = Table()
    async with app.run_test(size=(160, 48)):
        table = app.query_one(DataTable)
        table.add_columns("#", "verdict", "gain", "prompt")
        rows = [(str(number), "usable", "", f"How do I mend thing number {number}?") for number in range(count)]
        opened = await timed(lambda: table.add_rows(rows), app)
        matching = [one for one in rows if "number 17" in one[3]]
        filtered = await timed(lambda: (table.clear(), table.add_rows(matching)), app)
        return opened, filtered


if __name__ == "__main__":
    main()
