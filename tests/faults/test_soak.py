"""`attach` through many runs of the demo, one after the other in one folder: its memory and its open files stay as they are."""

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
            done.wait(1.5)  # it looks four times a second
            figures.append(figures_of(terminal.pid))
    finally:
        done.set()
        terminal.kill()
    finished = [entry for entry in read_entries(folder / layout.EVENTS_JSONL) if isinstance(entry.event, RunFinished)]
    assert len(finished) == runs + 1
    return figures


def figures_of(pid: int) -> tuple[int, int]:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(one.memory_info().rss for one in processes), sum(one.num_fds() for one in processes)


def test_attach_leaks_neither_memory_nor_files_over_three_runs(server: ForkServer, tmp_path: Path):
    figures = soak(server, tmp_path / "run", 3, "--from", "training")
    (memory, files), *_, (memory_at_last, files_at_last) = figures
    assert files_at_last == files
    assert memory_at_last - memory < 4 * MEBIBYTE, figures


@pytest.mark.slow
def test_attach_leaks_neither_memory_nor_files_over_thirty_runs(server: ForkServer, tmp_path: Path):
    figures = soak(server, tmp_path / "run", 30, "--from", "pairs")
    print([(memory // 1024, files) for memory, files in figures])
    settled = figures[5:]
    assert {files for _, files in settled} == {settled[0][1]}
    assert max(memory for memory, _ in settled) - settled[0][0] < 4 * MEBIBYTE


def test_the_state_after_a_thousand_runs_is_no_larger_than_after_five_hundred(server: ForkServer, tmp_path: Path):
    """The fold alone, over the journal of one run, told again and again."""
    assert server.run(tiny(tmp_path / "run", **SMALL), stages=("adapter", "pairs")).code == 0
    events = [entry.event for entry in read_entries(tmp_path / "run" / layout.EVENTS_JSONL)]

    def known(runs: int) -> int:
        state = RunState()
        for moment in range(runs):
            for event in events:
                state = state.apply(event, float(moment))
        return weight(state)

    assert known(1000) <= known(500)


def weight(value: object) -> int:
    """How many objects hang on it."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        waiting += gc.get_referents(one)
    return len(seen)
