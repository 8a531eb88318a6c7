"""`attach` during many runs of the demo, one after another in one folder: its memory and open files do not grow."""

from __future__ import annotations

import gc
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import psutil
import pytest

from engine.core import layout
from engine.core.events import RunFinished
from engine.run.journal import read_entries
from engine.run.state import RunState
from tests.support.fork_server import MAKING, ForkServer, tiny
from tests.support.pseudo_terminal import WIZARD, PseudoTerminal

MEBIBYTE = 1 << 20
SMALL = {"num_train_epochs": 1.0, "num_examples": 6, "min_eval_pairs": 2}


def soak(server: ForkServer, folder: Path, runs: int, *arguments: str) -> list[tuple[int, int]]:
    """(bytes of memory, open files) of an `attach` after each run."""
    first = server.run(tiny(folder, **SMALL), stages=MAKING)
    assert first.code == 0, first.errors
    terminal = PseudoTerminal([*WIZARD, "attach", str(folder)])
    done = Flag()
    reader = Thread(target=lambda: [terminal.read(0.1) for _ in iter(done.is_set, True)], daemon=True)
    figures = []
    try:
        terminal.wait_for("Training")
        reader.start()
        for _ in range(runs):
            ended = server.run([*tiny(folder, **SMALL), *arguments], stages=MAKING)
            assert ended.code == 0, ended.errors
            done.wait(1.5)  # it polls four times a second
            figures.append(figures_of(terminal.pid))
    finally:
        done.set()
        terminal.kill()
    finished = [entry for entry in read_entries(folder / layout.EVENTS_JSONL) if isinstance(entry.event, RunFinished)]
    assert len(finished) == runs + 1
    return figures


def figures_of(pid: int) -> tuple[int, int]:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    memory = sum(process.memory_info().rss for process in processes)
    return memory, sum(process.num_fds() for process in processes)


def test_attach_leaks_neither_memory_nor_files_over_three_runs(server: ForkServer, tmp_path: Path):
    figures = soak(server, tmp_path / "run", 3, "--from", "training")
    (memory, files), *_, (last_memory, last_files) = figures
    assert last_files == files
    assert last_memory - memory < 4 * MEBIBYTE, figures


@pytest.mark.slow
def test_attach_leaks_neither_memory_nor_files_over_thirty_runs(server: ForkServer, tmp_path: Path):
    figures = soak(server, tmp_path / "run", 30, "--from", "pairs")
    print([(memory // 1024, files) for memory, files in figures])
    settled = figures[5:]
    assert {files for _, files in settled} == {settled[0][1]}
    assert max(memory for memory, _ in settled) - settled[0][0] < 4 * MEBIBYTE


def test_the_state_after_a_thousand_runs_is_no_larger_than_after_five_hundred(server: ForkServer, tmp_path: Path):
    """Measures only the fold, over the repeated journal of one run."""
    assert server.run(tiny(tmp_path / "run", **SMALL), stages=("adapter", "pairs")).code == 0
    events = [entry.event for entry in read_entries(tmp_path / "run" / layout.EVENTS_JSONL)]

    def size_after(runs: int) -> int:
        state = RunState()
        for moment in range(runs):
            for event in events:
                state = state.apply(event, float(moment))
        return reachable_objects(state)

    assert size_after(1000) <= size_after(500)


def reachable_objects(value: object) -> int:
    """The number of objects that it refers to, directly or indirectly."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        waiting += gc.get_referents(item)
    return len(seen)
